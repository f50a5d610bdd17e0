from math import prod

import pytest

from oct_foundation.preflight.topologies import TOPOLOGIES, topology


@pytest.mark.parametrize(
    ("name", "chips", "compiler_name"),
    [
        ("v4-8", 4, "v4:2x2x1"), ("v4-32", 16, "v4:2x2x4"), ("v4-64", 32, "v4:2x4x4"), ("v5p-16", 8, "v5p:2x2x2"),
        ("v5e-1", 1, "v5e:1x1"), ("v5e-16", 16, "v5e:4x4"), ("v6e-8", 8, "v6e:2x4"),
    ],
)  # fmt: skip
def test_names_count_cores_on_v4_and_v5p_and_chips_elsewhere(name: str, chips: int, compiler_name: str):
    found = topology(name)
    assert (found.num_chips, found.compiler_name) == (chips, compiler_name)


def test_the_name_it_is_ordered_with_is_understood():
    assert topology("v5litepod-8") is topology("V5e-8")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'v4-16x'.*v4-8, v4-16, v4-32.*v6e-16.*two to a chip"):
        topology("v4-16x")


def test_every_slice_is_its_shape():
    for name, found in TOPOLOGIES.items():
        assert found.name == name
        assert found.num_chips == prod(found.shape) == int(name.split("-")[1]) // found.chip.cores_in_names


def test_a_v4_32_is_four_hosts_of_chips_as_the_documentation_has_them():
    pod = topology("v4-32")
    assert pod.num_chips // pod.chips_per_host == 4
    chip = pod.chip
    assert (chip.bf16_flops, chip.hbm_bytes, chip.hbm_bandwidth) == (275e12, 34_359_738_368, 1.2e12)
