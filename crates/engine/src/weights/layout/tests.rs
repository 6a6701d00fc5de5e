use super::*;
use crate::catalog;

const FORMATS: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Nf4];

/// One model of each family, tied and untied, and in every format.
fn check_all(check: impl Fn(&ModelSpec, &WeightLayout)) {
    for id in ["tinyllama-1.1b", "smollm2-135m", "mistral-7b-v0.3", "qwen2.5-0.5b", "qwen3-8b"] {
        let mut spec = catalog::find(id).unwrap().spec().unwrap();
        for format in FORMATS {
            for mlp_bias in [false, true] {
                spec.mlp_bias = mlp_bias;
                for embedding in [EmbeddingFormat::F32, EmbeddingFormat::Bf16] {
                    check(&spec, &WeightLayout::with_embedding_format(&spec, format, embedding));
                }
            }
        }
    }
}

/// The bytes of each part of a tensor.
fn byte_ranges(weight: Weight) -> Vec<std::ops::Range<usize>> {
    match weight {
        Weight::F32(slice) => vec![slice.byte_range()],
        Weight::Bf16(slice) => vec![slice.byte_range()],
        Weight::Nf4(weight) => vec![
            weight.codes.byte_range(),
            weight.absmax_codes.byte_range(),
            weight.absmax_scales.byte_range(),
            weight.absmax_offset.byte_range(),
        ],
    }
}

#[test]
fn tensors_fill_the_image_in_order_without_overlap() {
    check_all(|spec, layout| {
        let mut end = 0;
        let mut n_elements = 0;
        for place in layout.tensors() {
            n_elements += place.shape.n_elements();
            for range in byte_ranges(place.weight(MemoryId(0), 0)) {
                assert!(range.start.is_multiple_of(PART_ALIGNMENT));
                assert!(range.start >= end && range.start - end < BLOCK_ALIGNMENT, "{place:?}");
                end = range.end;
            }
        }
        assert!(end <= layout.n_bytes() && layout.n_bytes() - end < BLOCK_ALIGNMENT);
        assert_eq!(n_elements, spec.n_parameters());
        assert_eq!(n_elements, layout.n_elements());
    });
}

#[test]
fn blocks_cover_the_image_page_by_page_and_hold_their_tensors() {
    check_all(|_, layout| {
        let blocks: Vec<_> = layout.blocks().collect();
        let mut end = 0;
        for (_, range) in &blocks {
            assert_eq!(range.start, end);
            assert!(range.start.is_multiple_of(BLOCK_ALIGNMENT));
            end = range.end;
        }
        assert_eq!(end, layout.n_bytes());
        for place in layout.tensors() {
            let block = Block::of(place.role);
            assert!(blocks.iter().any(|(_, range)| range.start == layout.block_offset(block)));
            let (_, range) = blocks.iter().find(|(other, _)| *other == block).unwrap();
            for part in byte_ranges(place.weight(MemoryId(0), 0)) {
                assert_eq!(layout.block_at(part.start), block);
                assert!(range.start <= part.start && part.end <= range.end, "{place:?}");
            }
        }
    });
}

#[test]
fn handles_point_at_the_tensors_of_the_list() {
    let base = 3 * BLOCK_ALIGNMENT;
    let memory = MemoryId(7);
    check_all(|spec, layout| {
        let same = |left: Weight, right: Weight| {
            assert_eq!(format!("{left:?}"), format!("{right:?}"));
        };
        let at = |block| base + layout.block_offset(block);
        for place in layout.tensors() {
            let listed = place.weight(memory, base);
            match place.role {
                TensorRole::Embedding => {
                    let table = match layout.embedding_at(memory, at(Block::Embedding)) {
                        EmbeddingTable::F32(slice) => Weight::F32(slice),
                        EmbeddingTable::Bf16(slice) => Weight::Bf16(slice),
                    };
                    same(table, listed);
                    if spec.tied_embeddings {
                        same(layout.output_at(memory, at(Block::Output)), listed);
                    }
                }
                TensorRole::FinalNorm => {
                    same(Weight::F32(layout.final_norm_at(memory, at(Block::FinalNorm))), listed);
                }
                TensorRole::Output => same(layout.output_at(memory, at(Block::Output)), listed),
                TensorRole::Layer(layer, LayerTensor::Matrix(projection)) => {
                    same(layout.matrix_at(projection, memory, at(Block::Layer(layer))), listed);
                }
                TensorRole::Layer(layer, tensor) => {
                    let vector = layout.vector_at(tensor, memory, at(Block::Layer(layer))).unwrap();
                    same(Weight::F32(vector), listed);
                }
            }
        }
        let query_norm = layout.vector_at(LayerTensor::QueryNorm, memory, at(Block::Layer(0)));
        assert_eq!(query_norm.is_some(), spec.qk_norm);
    });
}

#[test]
fn only_the_matrices_of_decoder_blocks_are_quantised() {
    check_all(|_, layout| {
        for place in layout.tensors() {
            let expected = match place.role {
                TensorRole::Embedding | TensorRole::Output => {
                    layout.embedding_format().as_weight_format()
                }
                TensorRole::Layer(_, LayerTensor::Matrix(_)) => layout.format(),
                _ => WeightFormat::F32,
            };
            assert_eq!(place.parts.format(), expected, "{place:?}");
        }
    });
}
