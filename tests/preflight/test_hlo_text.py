import pytest

from oct_foundation.preflight.hlo_text import read_hlo

HLO = """HloModule step, is_scheduled=true

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %wide = f32[4096,4096]{1,0:T(8,128)} broadcast(%p), dimensions={0,1}
  ROOT %narrow = bf16[64,64]{1,0:T(8,128)(2,1)} convert(%wide)
}

ENTRY %main (x: bf16[64,64], g: f32[384,1536], h: f32[384]) -> (f32[384,1536], bf16[64,64]) {
  %x = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %g = f32[384,1536]{1,0:T(8,128)} parameter(1)
  %h = f32[384]{0:T(512)} parameter(2)
  %copy-start = (f32[384]{0:T(512)S(3)}, f32[384]{0:T(512)}, u32[]{:S(2)}) copy-start(%h)
  %slice-start = ((f32[384,1536]{1,0:T(8,128)}), f32[96,1536]{1,0:T(8,128)S(3)}, s32[]{:S(2)}) slice-start(%g), slice={[0:96], [0:1536]}
  %slice-done = f32[96,1536]{1,0:T(8,128)S(3)} slice-done(%slice-start)
  %copy-done = f32[384]{0:T(512)S(3)} copy-done(%copy-start)
  %fusion.1 = bf16[64,64]{1,0:T(8,128)(2,1)} fusion(%x, %copy-done), kind=kLoop, calls=%fused
  %quiet = bf16[64,64]{1,0:T(8,128)(2,1)S(3)} custom-call(%fusion.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"("}}
  %frank = bf16[64,64]{1,0:T(8,128)(2,1)} custom-call(%quiet), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"1"}}}
  %all-reduce = (f32[384,1536]{1,0:T(8,128)}, /*index=1*/f32[384]{0:T(512)S(3)}) all-reduce(%g, %copy-done), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%region_0.1
  %reduced = f32[384,1536]{1,0:T(8,128)} get-tuple-element(%all-reduce), index=0
  ROOT %tuple = (f32[384,1536]{1,0:T(8,128)}, bf16[64,64]{1,0:T(8,128)(2,1)}) tuple(%reduced, %frank)
}
"""  # noqa: E501 - lines of a compiler
WIDE = 64 * 128 * 2  # 64 columns of bf16 lie in a tile of 128
GRADIENT, ROW = 384 * 1536 * 4, 384 * 4


def test_bytes_are_those_in_hbm_with_their_tiles_and_without_what_a_fusion_keeps_to_itself():
    copy = ROW + GRADIENT // 4  # out of HBM, a row and a quarter; what is written lies in S(3)
    fusion, quiet, frank, reduce = 2 * WIDE, WIDE, WIDE, 2 * GRADIENT
    assert read_hlo(HLO).hbm_bytes == copy + fusion + quiet + frank + reduce


def test_collectives_are_counted_by_what_they_produce_wherever_it_lies():
    found = read_hlo(HLO)
    assert found.collective_bytes == {"all-reduce": GRADIENT + ROW}
    assert found.num_collectives == 1


def test_only_kernels_that_state_no_cost_are_left_to_be_added():
    found = read_hlo(HLO)
    assert found.num_kernels == 2
    assert found.silent_kernel_bytes == WIDE


def test_an_asynchronous_collective_is_one():
    start = HLO.replace("all-reduce(%g", "all-reduce-start(%g").replace("%all-reduce = ", "%all-reduce-start = ")
    found = read_hlo(start.replace("get-tuple-element(%all-reduce)", "all-reduce-done(%all-reduce-start)"))
    assert found.collective_bytes == {"all-reduce": GRADIENT + ROW}


def test_a_started_permutation_counts_what_it_produces_and_not_its_source():
    one = (
        "%sent = (f32[384]{0:T(512)}, f32[384]{0:T(512)S(3)}, u32[]{:S(2)}, u32[]{:S(2)}) "
        "collective-permute-start(%h), source_target_pairs={{0,1}}\n  ROOT %tuple"
    )
    assert read_hlo(HLO.replace("ROOT %tuple", one)).collective_bytes["collective-permute"] == ROW


def test_a_fused_reduction_to_a_part_is_a_collective():
    one = "%part = f32[96,1536]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.2\n  ROOT %tuple"
    found = read_hlo(HLO.replace("ROOT %tuple", one))
    assert found.collective_bytes["reduce-scatter"] == GRADIENT // 4
    assert found.num_collectives == 2


@pytest.mark.parametrize("text", ["", "HloModule empty\n"])
def test_nothing_is_nothing(text: str):
    assert read_hlo(text).hbm_bytes == 0
