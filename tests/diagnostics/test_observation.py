"""An observation refuses what does not fit together, and joins the parts of several ranks in order."""

from dataclasses import fields, replace

import pytest
import torch

from oct_foundation.diagnostics.observation import Observation


def observation(num_volumes=4, num_positions=3, width=5, num_viewed=2, num_views=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    m, p, e = num_volumes, num_positions, width

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Observation(
        pooled=normal(m, e),
        pooled_online=normal(m, e),
        pooled_foreground=normal(m, e),
        targets=normal(m, p, e),
        predictions=normal(m, p, e),
        hidden=normal(m, p) > 0,
        foreground=normal(m, p) > 0,
        losses=normal(m).abs(),
        views=normal(num_viewed, num_views, e),
        domains=tuple(f"maker {index}" for index in range(m)),
    )


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pooled", torch.zeros(4, 6)),
        ("pooled_online", torch.zeros(3, 5)),
        ("pooled_foreground", torch.zeros(4)),
        ("predictions", torch.zeros(4, 2, 5)),
        ("hidden", torch.zeros(4, 5, dtype=torch.bool)),
        ("hidden", torch.zeros(4, 3)),
        ("foreground", torch.zeros(3, 4, dtype=torch.bool)),
        ("foreground", torch.zeros(4, 3, dtype=torch.uint8)),
        ("losses", torch.zeros(4, 1)),
        ("views", torch.zeros(5, 2, 5)),
        ("views", torch.zeros(2, 2, 4)),
        ("views", torch.zeros(2, 5)),
        ("domains", ("one",)),
        ("targets", torch.zeros(4, 5)),
        ("targets", torch.zeros(0, 3, 5)),
    ],
)
def test_a_field_of_another_shape_or_type_is_named(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        replace(observation(), **{name: wrong})


def test_parts_of_ranks_join_into_the_whole_in_order():
    whole = observation()
    joined = Observation.concatenate(
        [
            Observation(**{field.name: getattr(whole, field.name)[part] for field in fields(whole)})
            for part in (slice(0, 1), slice(1, 4))
        ]
    )
    for field in fields(whole):
        found, expected = getattr(joined, field.name), getattr(whole, field.name)
        assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected, field.name


def test_a_rank_without_views_joins_ranks_that_have_some():
    parts = [observation(num_viewed=0, num_views=0, seed=1), observation(num_viewed=2, num_views=3, seed=2)]
    joined = Observation.concatenate(parts)
    assert joined.num_volumes == 8
    assert torch.equal(joined.views, parts[1].views)


def test_no_rank_with_views_joins_to_none():
    parts = [observation(num_viewed=0), observation(num_viewed=0)]
    assert Observation.concatenate(parts).views.shape == (0, 2, 5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "one part at least"),
        ([observation(), observation(num_positions=4)], "targets of the parts differ"),
        ([observation(), observation(num_views=3)], "views of the parts differ"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Observation.concatenate(parts)
