"""The compiler's texts, recorded and cut down; libtpu is not needed."""

import pytest

from benchmarks import tpu_compile
from benchmarks.tpu_bundles import schedule_cycles
from benchmarks.tpu_hlo import Program, arrays, exposed_cycles, stage

# A pipelined loop of 29 rounds; its body, bundles 0x8 to 0xa, runs in rounds 5 to 23 only.
BUNDLES = """\
LH: loop header
= control target key end

     0   :  { %s9 = smov.u32 0 } /* Start region 0 */
   0x1 LB: > { %p30_p0 = scmp.ge.s32.totalorder %s45_s15, 5  ;;  %s45_s15 = sphi %s74, %s8_s15 }
   0x2   : > { %p90_p2 = scmp.lt.s32.totalorder %s45_s15, 24  ;;  %p91_p3 = pnand %p30_p0, %p90_p2 }
   0x3   : > { %94 = sbr.rel (%p91_p3) target bundleno = 11 (0xb), region = 25 }
   0x4   :  {}
   0x5   :  {}
   0x6   :  {}
   0x7   :  {}
   0x8   : > { %v1 = vld [vmem:[%s0]] }
   0x9   : > { %v2 = vmul.f32 %v1, %v1 }
   0xa   : > { %9 = vst [vmem:[%s1]] %v2 }
   0xb PF: > { %s8_s15 = sadd.s32 1, %s45_s15 /* iteration index */ }
   0xc   : > { %p5_p9 = scmp.ge.s32.totalorder %s8_s15, 29 /* loop exit test */ }
   0xd   :  { %7 = sbr.rel (!%p5_p9) target bundleno = 1 (0x1), region = 42 }
   0xe   :  {} /* End region 0 */
"""

HLO = """\
HloModule jit_train_step, is_scheduled=true

%fused_computation.1 (param_0: bf16[8,4], param_1: bf16[4,2]) -> bf16[8,2] {
  %param_0 = bf16[64,147,147,64]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[64,147,147,128]{3,0,2,1:T(8,128)(2,1)} convolution(%param_0, %param_1), window={size=1x1}, dim_labels=b01f_io01->b01f, metadata={op_name="jit(train_step)/jvp(block2)/dot_general"}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %copy.7 = f32[8,128]{0,1:T(8,128)} copy(%x), metadata={op_name="jit(train_step)/transpose(jvp(block12))/mul"}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%p, %copy.7)
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %p.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %a = bf16[64,147,147,64]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %k = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %fusion.1 = bf16[64,147,147,128]{3,0,2,1:T(8,128)(2,1)} fusion(%a, %k), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(train_step)/jvp(block2)/dot_general"}, backend_config={"estimated_cycles":"1234"}
  %fusion.2 = bf16[64,147,147,128]{3,0,2,1:T(8,128)(2,1)} fusion(%a, %k), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(train_step)/jvp(block2)/dot_general"}
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%t), condition=%cond, body=%body
  ROOT %all-reduce.1 = f32[]{:T(128)} all-reduce(%z), to_apply=%add
}
"""  # noqa: E501

LARGE = 147 * 147 * 64 * 128 * 2  # 64 channels lie in 128 lanes


def test_bundles_count_as_often_as_they_run():
    always = 2  # before and after the loop
    every_round = 7 + 3  # the branch takes effect after four more bundles
    assert schedule_cycles(BUNDLES) == always + 29 * every_round + 19 * 3


def test_a_guard_that_is_not_understood_is_taken_to_let_pass():
    text = BUNDLES.replace("%p91_p3 = pnand %p30_p0, %p90_p2", "%p91_p3 = other %p30_p0")
    assert schedule_cycles(text) == 2 + 29 * 13


def test_bytes_are_those_of_the_tiles_in_hbm():
    (large,) = arrays("bf16[64,147,147,64]{3,0,2,1:T(8,128)(2,1)}")
    assert (large.bytes, large.in_hbm) == (LARGE, True)
    near, scalar = arrays("(f32[3,130]{1,0:T(8,128)S(1)}, s32[]{:T(128)})")
    assert (near.bytes, near.in_hbm) == (8 * 256 * 4, False)
    assert scalar.bytes == 4


def test_a_program_is_summed_by_operation():
    found = {c.operation.name: c for c in Program(HLO, {"fusion.1": 100, "copy.7": 10}).costs()}
    product = found["fusion.1"]
    assert (product.kind, product.stage, product.backward) == ("pointwise", "block2", False)
    assert product.bytes == 2 * LARGE
    assert product.operation.classic_cycles == 1234
    assert found["fusion.2"].cycles == 100  # the same operation, compiled once
    copy = found["copy.7"]
    assert (copy.kind, copy.stage, copy.backward) == ("copy", "block12", True)
    assert (copy.rounds, copy.cycles, copy.bytes) == (4, 40, 4 * (4096 + 16 * 4096))
    assert found["all-reduce.1"].kind == "all-reduce"
    assert set(found) == {"fusion.1", "fusion.2", "copy.7", "all-reduce.1"}


ASYNCHRONOUS = """\
ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0:T(1024)} parameter(0)
  %copy-start.1 = (f32[1024]{0:T(1024)}, f32[1024]{0:T(1024)S(1)}, u32[]{:S(2)}) copy-start(%a)
  %copy-start.2 = (f32[1024]{0:T(1024)}, f32[1024]{0:T(1024)S(1)}, u32[]{:S(2)}) copy-start(%a)
  %negate.1 = f32[1024]{0:T(1024)} negate(%a)
  %copy-done.2 = f32[1024]{0:T(1024)S(1)} copy-done(%copy-start.2)
  %exponential.1 = f32[1024]{0:T(1024)} exponential(%a)
  %copy-done.1 = f32[1024]{0:T(1024)S(1)} copy-done(%copy-start.1)
  ROOT %sine.1 = f32[1024]{0:T(1024)} sine(%copy-done.1)
}
"""


@pytest.mark.parametrize(
    ("negate", "exponential", "exposed"),
    [
        (8192, 8192, 8192),  # as long as their own bytes take: nothing is idle
        (8192 + 4096, 8192 + 4096, 0),  # one copy beside each
        (8192 + 5000, 8192 + 4000, 0),  # the urgent one first, and what is left for the other
        (8192 + 1000, 8192 + 9999, 3096),  # the urgent one must be done before there is time
        (8192 + 9999, 8192, 0),
    ],
)
def test_asynchronous_copies_cost_what_does_not_fit_beside_computing(negate, exponential, exposed):
    cycles = {"negate.1": negate, "exponential.1": exponential, "sine.1": 99999}
    assert exposed_cycles(Program(ASYNCHRONOUS, cycles).costs(), float) == exposed


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(train_step)/jvp(block1)/relu", "block1"),
        ("jit(train_step)/transpose(jvp(block14))/mul", "block14"),
        ("jit(train_step)/jvp()/dot_general", "head"),
        ("jit(train_step)/add", "update"),
    ],
)
def test_stages_come_from_the_named_scopes(op_name, expected):
    assert stage(op_name) == expected


ROW = {
    "chips": "v5e:2x2",
    "blocks": "short",
    "batch": 64,
    "side": 79,
    "microbatch": 0,
    "overrides": "",
    "part": "all",
    "larger_mcycles": 10.0,
    "temporary_gb": 1.0,
    "all_reduces": 3,
    "real_copies": 0,
    "without_schedule": 10,
}
COMMITTED = [{name: str(value) for name, value in ROW.items()}]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"larger_mcycles": 10.29, "temporary_gb": 1.04}, None),
        ({"larger_mcycles": 5.0, "real_copies": 0}, None),
        ({"larger_mcycles": 10.4}, "larger_mcycles is 10.4; 10 is committed"),
        ({"temporary_gb": 1.06}, "temporary_gb is 1.06"),
        ({"all_reduces": 4}, "all_reduces is 4; 3 is committed"),
        ({"real_copies": 1}, "real_copies is 1; 0 is committed"),
        ({"without_schedule": 12}, "without_schedule is 12"),
        ({"batch": 128}, "no committed figures"),
    ],
)
def test_check_names_the_figure_that_is_worse(changes, complaint):
    found = tpu_compile.worse({**ROW, **changes}, COMMITTED)
    assert found is None if complaint is None else complaint in found


def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setattr(tpu_compile.util, "find_spec", lambda name: object())
    assert tpu_compile.main(["--chips", "v9"]) == 2
    assert "KIND:SHAPE" in capsys.readouterr().err


def test_without_libtpu_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(tpu_compile.util, "find_spec", lambda name: None)
    assert tpu_compile.main([]) == 2
    error = capsys.readouterr().err
    assert "pip install 'xception_jax[tpu]'" in error
    assert error.count("\n") == 1
