"""The compiler's programs, recorded and cut down; libtpu is not needed."""

import pytest

from xception_jax.planning.tpu.costs import Program, exposed_cycles, stage
from xception_jax.planning.tpu.hlo import arrays

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
        ("jit(train_step)/jvp(stem)/conv_general_dilated", "stem"),
        ("jit(train_step)/transpose(jvp(blocks.3))/mul", "blocks.3"),
        ("jit(train_step)/jvp(mixed10)/concatenate", "mixed10"),
        ("jit(train_step)/jvp(middle_flow)/while/body/mul", "middle_flow"),
        ("jit(train_step)/jvp()/dot_general", "head"),
        ("jit(train_step)/add", "update"),
    ],
)
def test_stages_come_from_the_named_scopes(op_name, expected):
    assert stage(op_name) == expected


BETWEEN = """\
%fused (param_0: f32[8,128], param_1: f32[8]) -> (f32[128], f32[]) {
  %param_0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %param_1 = f32[8]{0:T(128)} parameter(1)
  %of_images = f32[128]{0:T(128)} reduce(%param_0), to_apply=%add
  %of_mask = f32[]{:T(128)} reduce(%param_1), to_apply=%add
  ROOT %both = (f32[128]{0:T(128)}, f32[]{:T(128)}) tuple(%of_images, %of_mask)
}

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %k = f32[128,128]{1,0:T(8,128)} parameter(1)
  %mask = f32[8]{0:T(128)} parameter(2)
  %dot.1 = f32[8,128]{1,0:T(8,128)} dot(%a, %k), lhs_contracting_dims={1}
  %sums = (f32[128]{0:T(128)}, f32[]{:T(128)}) fusion(%dot.1, %mask), kind=kLoop, calls=%fused
  %sum.1 = f32[128]{0:T(128)} get-tuple-element(%sums), index=0
  %examples = f32[]{:T(128)} get-tuple-element(%sums), index=1
  %count = f32[]{:T(128)} all-reduce(%examples), to_apply=%add
  %statistics = f32[128]{0:T(128)} all-reduce(%sum.1), to_apply=%add
  %scaled = f32[8,128]{1,0:T(8,128)} divide(%dot.1, %statistics)
  %weighted = f32[8,128]{1,0:T(8,128)} multiply(%scaled, %count)
  %dot.2 = f32[8,128]{1,0:T(8,128)} dot(%weighted, %k), lhs_contracting_dims={1}
  %gradients = (f32[8,128]{1,0:T(8,128)}, f32[128]{0:T(128)}) all-reduce(%dot.2, %sum.1), to_apply=%add
  %gathered = (f32[8,128]{1,0:T(8,128)}, f32[32,128]{1,0:T(8,128)}) all-gather-start(%dot.2)
  %gathered.2 = f32[32,128]{1,0:T(8,128)} all-gather-done(%gathered)
  ROOT %update = f32[8,128]{1,0:T(8,128)} add(%dot.2, %a)
}
"""  # noqa: E501


def test_collectives_between_layers_are_told_from_those_around_the_network():
    found = {c.operation.name: c for c in Program(BETWEEN, {}).costs() if c.payload}
    assert {name: c.inside for name, c in found.items()} == {
        "count": False,  # it depends on no layer, though it is summed beside what does
        "statistics": True,
        "gradients": False,  # no layer depends on it
        "gathered": False,
    }
    payloads = {name: c.payload for name, c in found.items()}
    assert payloads == {
        "count": 4,
        "statistics": 128 * 4,
        "gradients": 8 * 128 * 4 + 128 * 4,
        "gathered": 32 * 128 * 4,
    }
    assert found["gathered"].kind == "all-gather"
