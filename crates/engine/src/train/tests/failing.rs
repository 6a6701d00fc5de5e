//! A processor that fails like a card: what is asked of it afterwards is not done, and it says so only
//! when it is asked.

use std::{cell::Cell, ops::Range};

use nibble_kernels::{
    Cpu, DeviceError, DeviceProfile, DeviceSlice, Element, Floats, Gradient, Memory, MemoryError,
    MemoryId, OperationProfile, Paging, Store, WeightGradient, adamw, attention, embedding,
    gradient_norm, layers, linear,
    memory::MappedFile,
    nf4, output_loss,
    paging::{PageError, PageFile, StoreId, StorePlace, Transfer, Transferred},
    rms_norm, rope, rows, swiglu,
};
use nibble_run::CardReadings;

use crate::devices::{Ceilings, OpenDeviceError, RunDevice};

/// The device.
pub struct Failing {
    cpu: Cpu,
    /// Operations that it still does.
    n_left: Cell<u64>,
    /// Times that the host waited for it.
    n_waits: Cell<u64>,
}

thread_local! {
    /// Operations that the next one does.
    static N_OPERATIONS: Cell<u64> = const { Cell::new(u64::MAX) };
}

impl Failing {
    /// Lets the next one that is opened fail after `n_operations`.
    pub fn after(n_operations: u64) {
        N_OPERATIONS.set(n_operations);
    }

    /// How often the host waited for it, for numbers to come.
    pub fn n_waits(&self) -> u64 {
        self.n_waits.get()
    }

    /// Whether the next operation is done.
    fn works(&self) -> bool {
        let n_left = self.n_left.get();
        self.n_left.set(n_left.saturating_sub(1));
        n_left > 0
    }
}

impl RunDevice for Failing {
    fn open(profile: DeviceProfile) -> Result<Self, OpenDeviceError> {
        let n_left = Cell::new(N_OPERATIONS.replace(u64::MAX));
        Ok(Self { cpu: <Cpu as RunDevice>::open(profile)?, n_left, n_waits: Cell::new(0) })
    }

    fn profile_operations(&mut self, _: bool) {}

    fn profiled(&self) -> &[OperationProfile] {
        &[]
    }

    fn ceilings(&mut self) -> Ceilings {
        Ceilings::default()
    }

    fn readings(&self) -> Option<CardReadings> {
        None
    }
}

impl Memory for Failing {
    fn profile(&self) -> DeviceProfile {
        self.cpu.profile()
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<MemoryId, MemoryError> {
        self.cpu.allocate(n_bytes)
    }

    fn adopt(&mut self, file: MappedFile, used: &[Range<usize>]) -> Result<MemoryId, MemoryError> {
        self.cpu.adopt(file, used)
    }

    fn allocated_bytes(&self) -> usize {
        self.cpu.allocated_bytes()
    }

    fn check(&self) -> Result<(), DeviceError> {
        if self.n_left.get() > 0 {
            return Ok(());
        }
        Err(DeviceError::Failed { call: "test", reason: "as was asked".into() })
    }

    fn upload<T: Element>(&mut self, source: &[T], destination: DeviceSlice<T>) {
        if self.works() {
            self.cpu.upload(source, destination);
        }
    }

    fn download<T: Element>(&self, source: DeviceSlice<T>, destination: &mut [T]) {
        self.n_waits.set(self.n_waits.get() + 1);
        if self.works() {
            self.cpu.download(source, destination);
        } else {
            destination.fill(T::zeroed());
        }
    }

    fn clear<T: Element>(&mut self, slice: DeviceSlice<T>) {
        if self.works() {
            self.cpu.clear(slice);
        }
    }

    fn copy<T: Element>(&mut self, source: DeviceSlice<T>, destination: DeviceSlice<T>) {
        if self.works() {
            self.cpu.copy(source, destination);
        }
    }
}

impl Paging for Failing {
    fn host_store(&mut self, n_bytes: usize) -> Result<StoreId, PageError> {
        self.cpu.host_store(n_bytes)
    }

    fn file_store(&mut self, file: PageFile) -> StoreId {
        self.cpu.file_store(file)
    }

    fn load(&mut self, from: StorePlace, to: DeviceSlice<u8>) -> Result<Transfer, PageError> {
        self.cpu.load(from, to)
    }

    fn save(&mut self, from: DeviceSlice<u8>, to: StorePlace) -> Result<Transfer, PageError> {
        self.cpu.save(from, to)
    }

    fn wait(&mut self, transfer: Transfer) -> Result<(), PageError> {
        self.cpu.wait(transfer)
    }

    fn read_store(&mut self, source: StorePlace, bytes: &mut [u8]) -> Result<(), PageError> {
        self.cpu.read_store(source, bytes)
    }

    fn write_store(&mut self, destination: StorePlace, bytes: &[u8]) -> Result<(), PageError> {
        self.cpu.write_store(destination, bytes)
    }

    fn check_stores(&self) -> Result<(), PageError> {
        self.cpu.check_stores()
    }

    fn stored_bytes(&self) -> u64 {
        self.cpu.stored_bytes()
    }

    fn transferred(&self) -> Transferred {
        self.cpu.transferred()
    }
}

impl gradient_norm::GradientNorm for Failing {
    fn squared_norm(&mut self, gradients: &[Floats]) -> f64 {
        if self.works() { self.cpu.squared_norm(gradients) } else { 0.0 }
    }
}

/// Operations that are the processor's as long as the device works.
macro_rules! forward {
    ($($operation:path { $(fn $name:ident($($argument:ident: $kind:ty),*);)* })*) => {
        $(impl $operation for Failing {
            $(fn $name(&mut self, $($argument: $kind),*) {
                if self.works() {
                    self.cpu.$name($($argument),*);
                }
            })*
        })*
    };
}

#[rustfmt::skip]
forward! {
    embedding::Embedding {
        fn embedding(width: usize, ids: DeviceSlice<u32>, table: embedding::EmbeddingTable, y: DeviceSlice<f32>);
        fn embedding_backward(width: usize, ids: DeviceSlice<u32>, dy: DeviceSlice<f32>, dtable: DeviceSlice<f32>);
    }
    linear::Linear {
        fn linear(shape: linear::LinearShape, x: Floats, weight: linear::Weight, bias: Option<DeviceSlice<f32>>, store: Store, y: DeviceSlice<f32>, workspace: DeviceSlice<u8>);
        fn linear_input_gradient(shape: linear::LinearShape, dy: Floats, weight: linear::Weight, store: Store, dx: DeviceSlice<f32>, workspace: DeviceSlice<u8>);
        fn linear_weight_gradient(shape: linear::LinearShape, x: Floats, dy: Floats, dweight: WeightGradient, workspace: DeviceSlice<u8>);
        fn linear_bias_gradient(n_rows: usize, n_out: usize, dy: Floats, dbias: Gradient);
    }
    layers::Layers {
        fn layers(shape: layers::LayersShape, x: Floats, layers: &[layers::Layer], workspace: DeviceSlice<u8>);
        fn layers_backward(shape: layers::LayersShape, x: Floats, layers: &[layers::LayerBackward], gradients: Store, dx: Option<(DeviceSlice<f32>, Store)>, workspace: DeviceSlice<u8>);
    }
    nf4::Nf4 {
        fn nf4_quantize(source: DeviceSlice<f32>, weight: nf4::Nf4Weight, workspace: DeviceSlice<f32>);
        fn nf4_dequantize(weight: nf4::Nf4Weight, destination: DeviceSlice<f32>);
    }
    rms_norm::RmsNorm {
        fn rms_norm(shape: rms_norm::RmsNormShape, x: Floats, weight: DeviceSlice<f32>, y: Floats);
        fn rms_norm_backward(shape: rms_norm::RmsNormShape, x: Floats, weight: DeviceSlice<f32>, dy: DeviceSlice<f32>, dx: DeviceSlice<f32>, dweight: Option<Gradient>, workspace: DeviceSlice<u8>);
        fn rms_norm_backward_in_place(shape: rms_norm::RmsNormShape, x: Floats, weight: DeviceSlice<f32>, dy_dx: DeviceSlice<f32>, dweight: Option<Gradient>, workspace: DeviceSlice<u8>);
    }
    rope::Rope {
        fn rope(n_heads: usize, head_size: usize, rotation: rope::Rotation, positions: DeviceSlice<u32>, cos: DeviceSlice<f32>, sin: DeviceSlice<f32>, x: Floats);
    }
    attention::Attention {
        fn attention(shape: attention::AttentionShape, segments: DeviceSlice<attention::Segment>, q: Floats, k: Floats, v: Floats, out: Floats, log_sum_exp: DeviceSlice<f32>, workspace: DeviceSlice<u8>);
        fn attention_backward(shape: attention::AttentionShape, segments: DeviceSlice<attention::Segment>, q: Floats, k: Floats, v: Floats, out: Floats, log_sum_exp: DeviceSlice<f32>, dout: DeviceSlice<f32>, dq: DeviceSlice<f32>, dk: DeviceSlice<f32>, dv: DeviceSlice<f32>, workspace: DeviceSlice<u8>);
    }
    swiglu::Swiglu {
        fn swiglu(gate: Floats, up: Floats, y: Floats);
        fn swiglu_backward(dy: DeviceSlice<f32>, gate_dgate: Floats, up_dup: Floats);
    }
    output_loss::OutputLoss {
        fn output_loss(shape: output_loss::OutputLossShape, x: DeviceSlice<f32>, weight: linear::Weight, targets: DeviceSlice<u32>, losses: DeviceSlice<f32>, gradient: Option<output_loss::OutputLossGradient>, workspace: DeviceSlice<u8>);
        fn sum_losses(losses: DeviceSlice<f32>, sum: DeviceSlice<f64>, store: Store);
    }
    rows::Rows {
        fn add(x: DeviceSlice<f32>, y: DeviceSlice<f32>);
        fn gather_rows(width: usize, index: DeviceSlice<u32>, x: DeviceSlice<f32>, y: DeviceSlice<f32>);
        fn scatter_rows(width: usize, index: DeviceSlice<u32>, x: DeviceSlice<f32>, y: DeviceSlice<f32>);
    }
    adamw::AdamW {
        fn adamw(step: adamw::AdamWStep, parameters: Floats, gradient: Floats, moments: adamw::Moments);
    }
}
