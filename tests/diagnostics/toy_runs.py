"""The nine toy runs of jepa.md, section 4, as readings; where its text gives a range, its worst end is taken."""

from oct_foundation.diagnostics.readings import Reading

WARMUP_STEPS = 50
# name: (loss, pos-mean loss, pos_ratio, ev_pos, pooled std, the same over its initial value, token cosine, RankMe of
# tokens, centred tokens and pooled, LiDAR, probe R2, probe R2 of the random-init encoder), all at step 600.
TABLE = {
    "ema .996, seed 1": (0.00240, 0.0409, 0.06, 0.94, 0.094, 0.93, 0.857, 18.0, 20.9, 8.4, 7.3, 0.94, 0.74),
    "ema .996, seed 2": (0.00270, 0.0361, 0.07, 0.93, 0.099, 1.09, 0.877, 20.3, 23.6, 9.0, 7.2, 0.93, 0.80),
    "ema .996, seed 3": (0.00450, 0.0739, 0.06, 0.94, 0.129, 1.24, 0.745, 22.1, 25.6, 10.5, 10.5, 0.94, 0.77),
    "ema .9, seed 1": (0.00965, 0.1005, 0.10, 0.92, 0.127, 1.26, 0.603, 11.8, 13.7, 8.0, 7.7, 0.91, 0.74),
    "ema .9, seed 2": (0.00562, 0.0348, 0.16, 0.84, 0.110, 1.21, 0.891, 12.6, 13.7, 6.3, 4.7, 0.87, 0.80),
    "ema .9, seed 3": (0.00879, 0.0625, 0.14, 0.86, 0.162, 1.56, 0.828, 15.8, 16.8, 7.6, 6.9, 0.90, 0.77),
    "ema 0, seed 1": (0.00228, 0.0021, 1.09, -0.09, 0.022, 0.22, 0.993, 19.4, 21.9, 7.3, 3.0, 0.73, 0.74),
    "ema 0, seed 2": (0.01075, 0.0277, 0.39, 0.61, 0.083, 0.92, 0.902, 5.6, 6.3, 3.5, 3.3, 0.85, 0.80),
    "ema 0, seed 3": (0.00255, 0.0019, 1.38, -0.38, 0.022, 0.21, 0.994, 9.8, 11.0, 4.1, 3.2, 0.74, 0.77),
}
DEAD = ("ema 0, seed 1", "ema 0, seed 3")
NEARLY_DEAD = "ema 0, seed 2"
# (pos_ratio, pooled std over its initial value) on the way. All .9 runs were at step 100 where the dead ones stayed.
EARLY = {"ema .996": (1.20, 0.5), "ema .9": (1.90, 0.30), "ema 0": (1.90, 0.25)}


def toy_run(name: str, num_volumes: int = 256, probes: bool = False) -> list[Reading]:
    """Readings at steps 0, 100, 300 and 600."""
    loss, loss_pos, ratio, ev, std, relative, cosine, *ranks, probe, probe_init = TABLE[name]
    start = std / relative

    def reading(step, pos_ratio, spread, **others):
        return Reading(
            step=step,
            values={"num_volumes": num_volumes, "pos_ratio": pos_ratio, "pooled_std": spread * start, **others},
        )

    at_100 = EARLY[name.split(",")[0]]
    at_300 = {**dict.fromkeys(DEAD, (1.2, 0.25)), NEARLY_DEAD: (1.1, 0.8)}.get(name, (0.3, 0.9))
    end = dict(zip(("rankme_tokens", "rankme_centred", "rankme_pooled", "lidar"), ranks, strict=True))
    end |= {"loss": loss, "loss_pos": loss_pos, "ev_pos": ev, "token_cosine": cosine}
    if probes:
        end |= {"probe/factors": probe, "probe_init/factors": probe_init}
    return [
        reading(0, 8.0, 1.0, loss=0.47, loss_pos=0.06, token_cosine=0.68, rankme_tokens=57, lidar=22),
        reading(100, *at_100),
        reading(300, *at_300),
        reading(600, ratio, relative, **end),
    ]
