"""The compiler's bundles, recorded and cut down; libtpu is not needed."""

from xception_jax.planning.tpu.schedules import schedule_cycles

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


def test_bundles_count_as_often_as_they_run():
    always = 2  # before and after the loop
    every_round = 7 + 3  # the branch takes effect after four more bundles
    assert schedule_cycles(BUNDLES) == always + 29 * every_round + 19 * 3


def test_a_guard_that_is_not_understood_is_taken_to_let_pass():
    text = BUNDLES.replace("%p91_p3 = pnand %p30_p0, %p90_p2", "%p91_p3 = other %p30_p0")
    assert schedule_cycles(text) == 2 + 29 * 13
