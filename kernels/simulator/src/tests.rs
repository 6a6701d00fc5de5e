use half::bf16;

use super::*;

/// A kernel of one pointer `out`, whose body has `%r0` for the thread's number and `%rd0` for its own
/// four bytes of `out`.
fn kernel(declarations: &str, body: &str) -> Module {
    let text = format!(
        "
.version 7.4
.target sm_80
.address_size 64
{declarations}
.visible .entry test(
	.param .u64 test_param_0
)
{{
	.reg .pred %p<9>;
	.reg .b32 %r<40>;
	.reg .f32 %f<40>;
	.reg .b64 %rd<20>;
	.shared .align 16 .b8 memory[4096];
	ld.param.u64 %rd1, [test_param_0];
	cvta.to.global.u64 %rd1, %rd1;
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, %ctaid.x;
	mov.u32 %r2, %ntid.x;
	mad.lo.s32 %r3, %r1, %r2, %r0;
	mul.wide.u32 %rd2, %r3, 4;
	add.s64 %rd0, %rd1, %rd2; // its own place
{body}
	ret;
}}
"
    );
    Module::parse(&text).unwrap()
}

fn try_run(module: &Module, blocks: u32, threads: u32) -> Result<Vec<u32>, Fault> {
    let machine = Machine::new();
    let n = (blocks * threads) as usize;
    let out = machine.allocate(4 * n);
    let launch = Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared_bytes: 0 };
    machine.launch(&module.kernel("test").unwrap(), launch, &out.to_ne_bytes())?;
    let mut bytes = vec![0; 4 * n];
    machine.read(out, &mut bytes)?;
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    Ok(bytes.chunks_exact(4).map(word).collect())
}

/// What a warp of `body` leaves.
fn run(body: &str) -> Vec<u32> {
    try_run(&kernel("", body), 1, 32).unwrap()
}

/// Asserts that `body` faults, and what is said.
fn assert_fault(body: &str, blocks: u32, threads: u32, expected: &str) {
    let fault = try_run(&kernel("", body), blocks, threads).unwrap_err().to_string();
    assert!(fault.contains(expected), "{fault}");
}

#[test]
fn instructions_compute_what_the_manual_says() {
    // The body puts a result of the lane's number in %r9; beside it, what it must be.
    type Case = (&'static str, fn(u32) -> u32);
    let cases: [Case; 17] = [
        ("shl.b32 %r9, %r0, 3;", |i| i << 3),
        // Shifts go as far as there are bits.
        ("add.s32 %r8, %r0, 20; mov.u32 %r7, 1; shl.b32 %r9, %r7, %r8;", |i| {
            1_u32.checked_shl(i + 20).unwrap_or(0)
        }),
        ("sub.s32 %r8, %r0, 16; shr.s32 %r9, %r8, 2;", |i| ((i as i32 - 16) >> 2) as u32),
        ("sub.s32 %r8, %r0, 16; mov.u32 %r7, 5; max.s32 %r9, %r8, %r7;", |i| {
            (i as i32 - 16).max(5) as u32
        }),
        ("mad.lo.s32 %r9, %r0, 2654435761, 7;", |i| i.wrapping_mul(2_654_435_761).wrapping_add(7)),
        ("mov.u32 %r8, 4000000000; mul.hi.u32 %r9, %r8, %r0;", |i| {
            ((u64::from(i) * 4_000_000_000) >> 32) as u32
        }),
        ("bfe.u32 %r9, %r0, 1, 3;", |i| i >> 1 & 7),
        ("mov.u32 %r8, 0x12345678; prmt.b32 %r9, %r8, %r0, 0x4123;", |i| {
            i << 24 | 0x56 << 16 | 0x34 << 8 | 0x12
        }),
        ("mov.u32 %r8, 0x0ff0; lop3.b32 %r9, %r0, %r8, 3, 0x96;", |i| i ^ 0xff0 ^ 3),
        ("popc.b32 %r9, %r0;", u32::count_ones),
        ("clz.b32 %r9, %r0;", u32::leading_zeros),
        ("brev.b32 %r9, %r0;", u32::reverse_bits),
        ("setp.lt.u32 %p1, %r0, 9; selp.b32 %r9, 5, 6, %p1;", |i| if i < 9 { 5 } else { 6 }),
        ("setp.lt.u32 %p1, %r0, 9; mov.u32 %r9, 1; @!%p1 mov.u32 %r9, 2;", |i| {
            if i < 9 { 1 } else { 2 }
        }),
        ("cvt.rn.f32.u32 %f1, %r0; mul.f32 %f1, %f1, 0f3E99999A; cvt.rzi.s32.f32 %r9, %f1;", |i| {
            (i as f32 * 0.3) as u32
        }),
        // Rounded towards less: what the compiler makes of an exponential's whole part.
        (
            "cvt.rn.f32.u32 %f1, %r0; fma.rm.f32 %f2, %f1, 0f3DCCCCCD, 0f4B400001; mov.b32 %r9, %f2;",
            |i| {
                let exact = f64::from(i as f32) * f64::from(0.1_f32) + 12_582_913.0;
                (exact.floor() as f32).to_bits()
            },
        ),
        ("cvt.rn.f32.u32 %f1, %r0; sqrt.rn.f32 %f2, %f1; mov.b32 %r9, %f2;", |i| {
            (i as f32).sqrt().to_bits()
        }),
    ];
    for (body, expected) in cases {
        let found = run(&format!("{body} st.global.u32 [%rd0], %r9;"));
        let expected: Vec<u32> = (0..32).map(expected).collect();
        assert_eq!(found, expected, "{body}");
    }
}

#[test]
fn numbers_are_rounded_to_bf16_as_half_rounds_them() {
    let body = "
        cvt.rn.f32.u32 %f1, %r0;
        mul.f32 %f1, %f1, 0f3F8147AE;
        add.f32 %f2, %f1, 0f3F000000;
        cvt.rn.bf16x2.f32 %r9, %f2, %f1;
        st.global.u32 [%rd0], %r9;";
    for (i, pair) in run(body).into_iter().enumerate() {
        let lower = i as f32 * f32::from_bits(0x3f81_47ae);
        let narrow = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        assert_eq!(pair, narrow(lower + 0.5) << 16 | narrow(lower), "{i}");
    }
}

#[test]
fn lanes_that_part_come_together_again() {
    // Each lane counts to its own number, in a loop that they leave one after another.
    let body = "
        mov.u32 %r9, 0;
        setp.eq.u32 %p1, %r0, 0;
        @%p1 bra END;
    LOOP:
        add.s32 %r9, %r9, 2;
        sub.s32 %r8, %r9, %r0;
        setp.lt.u32 %p1, %r9, %r0;
        @%p1 bra LOOP;
    END:
        shfl.sync.bfly.b32 %r7|%p2, %r9, 1, 31, -1;
        st.global.u32 [%rd0], %r7;";
    let count = |i: u32| if i == 0 { 0 } else { i.div_ceil(2) * 2 };
    assert_eq!(run(body), (0..32).map(|i| count(i ^ 1)).collect::<Vec<_>>());
}

#[test]
fn warps_meet_at_barriers() {
    let body = "
        mov.u32 %r4, memory;
        shl.b32 %r5, %r0, 2;
        add.s32 %r6, %r4, %r5;
        st.shared.u32 [%r6], %r0;
        bar.sync 0;
        sub.s32 %r7, %r4, %r5;
        ld.shared.u32 %r9, [%r7+508];
        st.global.u32 [%rd0], %r9;";
    let found = try_run(&kernel("", body), 3, 128).unwrap();
    let expected: Vec<u32> = (0..3).flat_map(|_| (0..128).rev()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_missing_barrier_is_a_fault() {
    let body = "
        mov.u32 %r4, memory;
        shl.b32 %r5, %r0, 2;
        add.s32 %r6, %r4, %r5;
        st.shared.u32 [%r6], %r0;
        sub.s32 %r7, %r4, %r5;
        ld.shared.u32 %r9, [%r7+508];
        st.global.u32 [%rd0], %r9;";
    assert_fault(body, 1, 128, "never written");
    let twice = format!("{body} bar.sync 0; {body}");
    assert_fault(&twice, 1, 128, "never written");
    // Written before, so that only the order is wrong.
    let body = "
        mov.u32 %r4, memory;
        shl.b32 %r5, %r0, 2;
        add.s32 %r6, %r4, %r5;
        st.shared.u32 [%r6], %r0;
        bar.sync 0;
        st.shared.u32 [%r6], %r3;
        sub.s32 %r7, %r4, %r5;
        ld.shared.u32 %r9, [%r7+508];";
    assert_fault(body, 1, 128, "since the last barrier");
    // Within a warp accesses are in order.
    try_run(&kernel("", &body.replace("508", "124")), 1, 32).unwrap();
}

#[test]
fn a_barrier_that_not_all_lanes_reach_is_a_fault() {
    let body = "setp.lt.u32 %p1, %r0, 5; @%p1 bar.sync 0;";
    assert_fault(body, 1, 32, "not all lanes");
}

#[test]
fn what_is_beside_an_allocation_is_a_fault() {
    assert_fault("ld.global.u32 %r9, [%rd0+128];", 1, 32, "not allocated");
    assert_fault("st.global.u32 [%rd0+-4], %r0;", 1, 32, "not allocated");
    assert_fault("ld.global.u32 %r9, [%rd0+1];", 1, 32, "not aligned");
    assert_fault("mov.u32 %r4, memory; ld.shared.u32 %r9, [%r4+4096];", 1, 32, "shared memory");
}

#[test]
fn blocks_that_touch_one_word_are_a_fault() {
    assert_fault("st.global.u32 [%rd1], %r2;", 2, 32, "another block");
    assert_fault("st.global.u32 [%rd0], %r0; ld.global.u32 %r9, [%rd1];", 4, 32, "another block");
    // All may read what none writes.
    let module = kernel("", "ld.global.u32 %r9, [%rd1];");
    try_run(&module, 4, 32).unwrap();
}

#[test]
fn a_copy_comes_when_it_is_waited_for() {
    let copy = "
        mov.u32 %r4, memory;
        shl.b32 %r5, %r0, 4;
        add.s32 %r6, %r4, %r5;
        mov.u32 %r8, 7;
        st.shared.u32 [%r6], %r8;
        st.global.u32 [%rd0], %r0;
        setp.lt.u32 %p1, %r0, 8;
        mul.wide.u32 %rd5, %r5, 1;
        add.s64 %rd6, %rd1, %rd5;
        @%p1 cp.async.cg.shared.global [%r6], [%rd6], 16, 16;
        cp.async.commit_group;";
    let read = "ld.shared.u32 %r9, [%r6]; st.global.u32 [%rd0], %r9;";
    let open = copy.replace("cp.async.commit_group;", "");
    let expected: Vec<u32> = (0..32).map(|i| if i < 8 { 4 * i } else { 7 }).collect();
    for waited in [
        format!("{copy} cp.async.wait_group 0; {read}"),
        format!("{copy} cp.async.wait_all; {read}"),
        format!("{open} cp.async.wait_all; {read}"),
    ] {
        assert_eq!(run(&waited), expected);
    }
    let coming = "was not waited for";
    assert_fault(&format!("{copy} {read} cp.async.wait_group 0;"), 1, 32, coming);
    // Waiting for groups does not mean what is in none.
    assert_fault(&format!("{open} cp.async.wait_group 0; {read}"), 1, 32, coming);
    assert_fault(&format!("{copy} st.shared.u32 [%r6], %r8;"), 1, 32, coming);
    assert_fault(copy, 1, 32, "never waited for");
}

#[test]
fn a_copy_to_what_other_warps_still_read_is_a_fault() {
    // Each warp reads all of 64 words that were written before, and one then copies over them.
    let body = |barrier: &str| {
        format!(
            "mov.u32 %r4, memory;
            shl.b32 %r5, %r0, 2;
            add.s32 %r6, %r4, %r5;
            st.shared.u32 [%r6], %r0;
            bar.sync 0;
            xor.b32 %r7, %r5, 128;
            add.s32 %r7, %r4, %r7;
            ld.shared.u32 %r9, [%r7];
            {barrier}
            setp.eq.u32 %p1, %r0, 0;
            @%p1 cp.async.cg.shared.global [%r4], [%rd1], 16, 16;
            cp.async.wait_all;"
        )
    };
    // The second warp reads what the first one's copy then replaces, and runs after it.
    let fault = try_run(&kernel("", &body("")), 1, 64).unwrap_err().to_string();
    assert!(fault.contains("since the last barrier"), "{fault}");
    try_run(&kernel("", &body("bar.sync 0;")), 1, 64).unwrap();
}

#[test]
fn lanes_that_write_different_numbers_to_one_place_are_a_fault() {
    assert_fault("st.global.u32 [%rd1], %r0;", 1, 32, "write different numbers");
    assert_fault("mov.u32 %r4, memory; st.shared.u32 [%r4], %r0;", 1, 32, "different numbers");
    assert_eq!(run("st.global.u32 [%rd0], %r0; st.global.u32 [%rd1], %r2;")[0], 32);
}

#[test]
fn blocks_that_touch_one_byte_are_a_fault_and_neighbouring_bytes_are_none() {
    // A block's first lane writes the byte of its number, or all write the first.
    let own = "cvt.u64.u32 %rd5, %r1; add.s64 %rd5, %rd1, %rd5; setp.eq.u32 %p1, %r0, 0;
        @%p1 st.global.u8 [%rd5], %r1;";
    assert_eq!(try_run(&kernel("", own), 4, 32).unwrap()[0], 0x0302_0100);
    assert_fault("mov.u32 %r4, 1; st.global.u8 [%rd1], %r4;", 2, 32, "another block");
    let word = format!("{own} @%p1 ld.global.u32 %r9, [%rd1];");
    assert_fault(&word, 4, 32, "another block");
}

#[test]
fn tiles_are_multiplied_as_they_are_laid_out() {
    // a[i, k] = i + 2k and b[k, j] = j - k, small enough to be exact in bf16 and in the sum.
    let (a, b) =
        (|i: usize, k: usize| (i + 2 * k) as f32, |k: usize, j: usize| j as f32 - k as f32);
    let bits = |x: f32| u64::from(bf16::from_f32(x).to_bits());
    let pair = |low: f32, high: f32| bits(low) | bits(high) << 16;
    let lanes = |f: &dyn Fn(usize, usize) -> u64| -> [u64; 32] {
        std::array::from_fn(|lane| f(lane / 4, 2 * (lane % 4)))
    };
    let first = [(0, 0), (8, 0), (0, 8), (8, 8)].map(|(row, column)| {
        lanes(&|group, place| {
            pair(a(group + row, place + column), a(group + row, place + column + 1))
        })
    });
    let second = [0, 8]
        .map(|row| lanes(&|group, place| pair(b(place + row, group), b(place + row + 1, group))));
    let sums = matrix::multiply(true, first, second, [[0; 32]; 4]);
    for (e, sum) in sums.iter().enumerate() {
        for (lane, &sum) in sum.iter().enumerate() {
            let (i, j) = (lane / 4 + 8 * (e / 2), 2 * (lane % 4) + e % 2);
            let expected: f32 = (0..16).map(|k| a(i, k) * b(k, j)).sum();
            assert_eq!(f32::from_bits(sum as u32), expected, "{i} {j}");
        }
    }
}

#[test]
fn tiles_are_loaded_by_rows_and_by_columns() {
    // Sixteen-bit numbers that say where they lie: 16 · row + column of four tiles.
    let fill = "
        mov.u32 %r4, memory;
        shl.b32 %r5, %r0, 4;
        add.s32 %r6, %r4, %r5;
        and.b32 %r7, %r0, 7;
        shl.b32 %r7, %r7, 4;
        shl.b32 %r8, %r0, 5;
        and.b32 %r8, %r8, 0xffffff00;
        or.b32 %r7, %r7, %r8;
        mad.lo.s32 %r8, %r7, 65537, 65536;
        st.shared.u32 [%r6], %r8;
        add.s32 %r8, %r8, 131074;
        st.shared.u32 [%r6+4], %r8;
        add.s32 %r8, %r8, 131074;
        st.shared.u32 [%r6+8], %r8;
        add.s32 %r8, %r8, 131074;
        st.shared.u32 [%r6+12], %r8;";
    for (trans, transposed) in [("", false), (".trans", true)] {
        for tile in 0..4_u32 {
            let found = run(&format!(
                "{fill} ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r20,%r21,%r22,%r23}}, [%r6];
                 st.global.u32 [%rd0], %r{};",
                20 + tile
            ));
            for (lane, word) in (0..32_u32).zip(found) {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let at = |row: u32, column: u32| 256 * tile + 16 * row + column;
                let expected = if transposed {
                    at(column, row) | at(column + 1, row) << 16
                } else {
                    at(row, column) | at(row, column + 1) << 16
                };
                assert_eq!(word, expected, "lane {lane} of tile {tile}, transposed: {transposed}");
            }
        }
    }
}

#[test]
fn constants_and_arguments_are_where_they_were_declared() {
    let declarations =
        ".const .align 4 .b8 table[16] = {1, 0, 0, 0, 2, 1, 0, 0, 255, 255, 255, 255};";
    let body = "
        and.b32 %r4, %r0, 3;
        mul.wide.u32 %rd5, %r4, 4;
        mov.u64 %rd6, table;
        add.s64 %rd7, %rd6, %rd5;
        ld.const.u32 %r9, [%rd7];
        st.global.u32 [%rd0], %r9;";
    let found = try_run(&kernel(declarations, body), 1, 32).unwrap();
    assert_eq!(found[..4], [1, 258, u32::MAX, 0]);
    let machine = Machine::new();
    let module = kernel("", "");
    let launch = Launch { grid: [1; 3], block: [32, 1, 1], dynamic_shared_bytes: 0 };
    let fault = machine.launch(&module.kernel("test").unwrap(), launch, &[0; 4]).unwrap_err();
    assert!(fault.to_string().contains("arguments"), "{fault}");
}

#[test]
fn what_is_not_understood_is_a_fault_with_its_line() {
    let module = kernel("", "frobnicate.b32 %r9, %r0;");
    let fault = try_run(&module, 1, 32).unwrap_err().to_string();
    assert!(fault.contains("not understood") && fault.contains("frobnicate.b32 %r9"), "{fault}");
}

#[test]
fn a_machine_gives_back_what_was_written_and_nothing_else() {
    let machine = Machine::new();
    let address = machine.allocate(11);
    machine.write(address + 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).unwrap();
    let mut bytes = [9; 11];
    machine.read(address, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert!(machine.read(address + 1, &mut bytes).is_err());
    machine.free(address);
    assert!(machine.write(address, &[1]).is_err());
}

/// A product of four warps, 64 × 16 by 16 × 8, in the steps that it takes: a's numbers are row + column, b is the
/// identity, and a thread leaves the first of its sums. Rows of 64 bytes, k along them.
const GROUP_PRODUCT: [(&str, &str); 6] = [
    (
        "write",
        "
        shr.u32 %r10, %r0, 1; and.b32 %r10, %r10, 3; shl.b32 %r10, %r10, 4;
        and.b32 %r11, %r0, 63; setp.ge.u32 %p1, %r0, 64; selp.b32 %r12, 4096, 0, %p1;
        shl.b32 %r13, %r11, 6; add.s32 %r12, %r12, %r13;
        setp.lt.u32 %p2, %r0, 72;
        mov.u32 %r20, 0;
    WORD:
        shr.u32 %r21, %r20, 2; shl.b32 %r21, %r21, 4; xor.b32 %r21, %r21, %r10;
        and.b32 %r22, %r20, 3; shl.b32 %r22, %r22, 2;
        add.s32 %r23, %r21, %r22; add.s32 %r23, %r23, %r12;
        mad.lo.s32 %r24, %r20, 2, %r11;
        cvt.rn.f32.u32 %f1, %r24; add.f32 %f2, %f1, 0f3F800000;
        cvt.rn.bf16x2.f32 %r25, %f2, %f1;
        shl.b32 %r26, %r20, 1; setp.eq.u32 %p3, %r26, %r11; selp.b32 %r27, 0x3f80, 0, %p3;
        add.s32 %r26, %r26, 1; setp.eq.u32 %p3, %r26, %r11; selp.b32 %r28, 0x3f800000, 0, %p3;
        or.b32 %r27, %r27, %r28; selp.b32 %r25, %r27, %r25, %p1;
        @%p2 st.shared.b32 [%r23], %r25;
        add.s32 %r20, %r20, 1; setp.lt.u32 %p3, %r20, 8; @%p3 bra WORD;",
    ),
    ("show", "fence.proxy.async.shared::cta;"),
    ("meet", "bar.sync 0;"),
    ("fence", "mov.f32 %f3, 0f00000000; wgmma.fence.sync.aligned;"),
    (
        "multiply",
        "
        mov.u64 %rd3, 0x8000002000010000; mov.u64 %rd4, 0x8000002000010100;
        setp.ne.u32 %p4, 1, 0;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f3, %f4, %f5, %f6}, %rd3, %rd4, %p4, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;",
    ),
    ("wait", "wgmma.wait_group.sync.aligned 0;"),
];

/// The product's threads' sums, without the step of a name or with other text in its place.
fn multiply_by_group(changed: &str, text: &str) -> Result<Vec<u32>, Fault> {
    let steps = GROUP_PRODUCT.iter().map(|&(name, step)| if name == changed { text } else { step });
    let body: String = steps.chain(["mov.b32 %r9, %f3; st.global.u32 [%rd0], %r9;"]).collect();
    try_run(&kernel(".shared .align 1024 .b8 tiles[8192];", &body), 1, 128)
}

#[test]
fn groups_of_warps_multiply_what_descriptors_say() {
    let found = multiply_by_group("", "").unwrap();
    for (thread, bits) in found.into_iter().enumerate() {
        let (warp, lane) = (thread / 32, thread % 32);
        let expected = 16 * warp + lane / 4 + 2 * (lane % 4);
        assert_eq!(f32::from_bits(bits), expected as f32, "thread {thread}");
    }
}

#[test]
fn what_a_product_of_groups_needs_is_missed() {
    let read_early = "mov.b32 %r9, %f3; wgmma.wait_group.sync.aligned 0; mov.b32 %f3, %r9;";
    let sums = multiply_by_group("wait", read_early).unwrap();
    assert!(sums.iter().all(|sum| *sum == 0), "sums before they were waited for");
    let pending = "wgmma.wait_group.sync.aligned 1;";
    let written_early = "bar.sync 0; mov.u32 %r8, 0; @!%p1 st.shared.b32 [%r8], %r8;";
    // The other warps may still be at their parts.
    let unmet = "wgmma.wait_group.sync.aligned 0; setp.eq.u32 %p5, %r0, 0; mov.u32 %r8, 4096;
        @%p5 st.shared.b32 [%r8], %r8;";
    let multiply = GROUP_PRODUCT[4].1;
    // Sixteen numbers further on, for all warps but the first; and a row further on.
    let moved =
        "setp.ge.u32 %p5, %r0, 32; selp.b64 %rd5, 2, 0, %p5; add.s64 %rd3, %rd3, %rd5; setp.ne";
    let apart = multiply.replacen("setp.ne", moved, 1);
    let beside = multiply.replacen("setp.ne", "add.s64 %rd3, %rd3, 4; setp.ne", 1);
    for (step, text, expected) in [
        ("show", "", "was not shown to products of groups"),
        ("meet", "", "was never written"),
        ("fence", "", "wgmma.fence"),
        ("wait", "", "products that were never waited for"),
        ("wait", pending, "products that were never waited for"),
        ("wait", written_early, "read by products that were not waited for"),
        ("wait", unmet, "was written by warp"),
        ("multiply", &apart, "different operands"),
        ("multiply", &beside, "does not begin where its pattern does"),
        ("meet", "bar.sync 0; st.shared.b32 [%r23], %r25;", "was not shown to products of groups"),
        ("wait", "mov.f32 %f3, 0f3F800000; wgmma.wait_group.sync.aligned 0;", "sums were written"),
    ] {
        let fault = multiply_by_group(step, text).unwrap_err().to_string();
        assert!(fault.contains(expected), "without {step}: {fault}");
    }
}

/// Its own part shown after the barrier, a warp would see; that of others it need not.
#[test]
fn what_is_shown_after_the_barrier_is_not_shown_to_other_warps() {
    let steps = GROUP_PRODUCT.iter().map(|&(name, step)| match name {
        "show" => "bar.sync 0;",
        "meet" => "fence.proxy.async.shared::cta;",
        _ => step,
    });
    let body: String = steps.collect();
    let module = kernel(".shared .align 1024 .b8 tiles[8192];", &body);
    let fault = try_run(&module, 1, 128).unwrap_err().to_string();
    assert!(
        fault.contains("was not shown to products of groups before the last barrier"),
        "{fault}"
    );
}

#[test]
fn a_group_is_of_four_warps() {
    let steps = GROUP_PRODUCT.iter().map(|&(name, step)| match name {
        "multiply" => format!("setp.lt.u32 %p6, %r0, 96; @!%p6 bra END; {step}"),
        _ => step.to_owned(),
    });
    let body: String = steps.chain(["END:".to_owned()]).collect();
    let module = kernel(".shared .align 1024 .b8 tiles[8192];", &body);
    let fault = try_run(&module, 1, 128).unwrap_err().to_string();
    assert!(fault.contains("not all four warps"), "{fault}");
}

/// 64 × 16 by 16 × 128 with k across the rows of b, in two parts of 64 columns: a has a one where the row, of each
/// sixteen, is the column; b's numbers are row + column.
#[test]
fn groups_multiply_what_lies_across() {
    // Registers of sums: eight columns are four.
    let sums: Vec<String> = (0..64).map(|i| format!("%f{}", 3 + i)).collect();
    let body = |sum: &str| {
        format!(
            "
        shr.u32 %r10, %r0, 1; and.b32 %r10, %r10, 3; shl.b32 %r10, %r10, 4;
        shl.b32 %r12, %r0, 6; and.b32 %r13, %r0, 15; setp.lt.u32 %p2, %r0, 64;
        mov.u32 %r20, 0;
    WORD:
        shr.u32 %r21, %r20, 2; shl.b32 %r21, %r21, 4; xor.b32 %r21, %r21, %r10;
        and.b32 %r22, %r20, 3; shl.b32 %r22, %r22, 2;
        add.s32 %r23, %r21, %r22; add.s32 %r23, %r23, %r12;
        shl.b32 %r26, %r20, 1; setp.eq.u32 %p3, %r26, %r13; selp.b32 %r27, 0x3f80, 0, %p3;
        add.s32 %r26, %r26, 1; setp.eq.u32 %p3, %r26, %r13; selp.b32 %r28, 0x3f800000, 0, %p3;
        or.b32 %r27, %r27, %r28;
        @%p2 st.shared.b32 [%r23], %r27;
        add.s32 %r20, %r20, 1; setp.lt.u32 %p3, %r20, 8; @%p3 bra WORD;
        // A thread's column of b: its part, and its place in a row.
        shr.u32 %r11, %r0, 6; mul.lo.s32 %r11, %r11, 2048; add.s32 %r11, %r11, 4096;
        and.b32 %r12, %r0, 63; shr.u32 %r14, %r12, 3; and.b32 %r15, %r12, 7; shl.b32 %r15, %r15, 1;
        mov.u32 %r20, 0;
    ROW:
        and.b32 %r21, %r20, 7; xor.b32 %r22, %r14, %r21; shl.b32 %r22, %r22, 4;
        mul.lo.s32 %r23, %r20, 128; add.s32 %r23, %r23, %r22; add.s32 %r23, %r23, %r15;
        add.s32 %r23, %r23, %r11; add.s32 %r24, %r20, %r0;
        cvt.rn.f32.u32 %f1, %r24; cvt.rn.bf16.f32 %r25, %f1; st.shared.b16 [%r23], %r25;
        add.s32 %r20, %r20, 1; setp.lt.u32 %p3, %r20, 16; @%p3 bra ROW;
        fence.proxy.async.shared::cta; bar.sync 0; wgmma.fence.sync.aligned;
        mov.u64 %rd3, 0x8000002000010000; mov.u64 %rd4, 0x4000004000800100;
        setp.ne.u32 %p4, 0, 0;
        wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{}}}, %rd3, %rd4, %p4, 1, 1, 0, 1;
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
        mov.b32 %r9, {sum}; st.global.u32 [%rd0], %r9;",
            sums.join(", ")
        )
    };
    for (at, sum) in sums.iter().enumerate() {
        let module = kernel(".shared .align 1024 .b8 tiles[8192];", &body(sum));
        for (thread, bits) in try_run(&module, 1, 128).unwrap().into_iter().enumerate() {
            let (group, place) = (thread % 32 / 4, thread % 4);
            let row = group + 8 * (at % 4 / 2);
            let column = 8 * (at / 4) + 2 * place + at % 2;
            assert_eq!(f32::from_bits(bits), (row + column) as f32, "{sum} of thread {thread}");
        }
    }
}
