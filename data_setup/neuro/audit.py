"""Every sample looked at before training, headers only: what is kept, what is refused and why, as one table."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_setup.neuro.conversations import Conversation, ImageRef, Refused
from data_setup.neuro.errors import REMEDY, NeuroFileError, NeuroReason
from data_setup.neuro.prompt import PromptEncoder
from data_setup.neuro.samples import ImageSource


@dataclass(frozen=True, kw_only=True)
class Audit:
    """kept: samples to train on. refused: the others. notes: what was odd in kept images, and in how many."""

    kept: tuple[Conversation, ...]
    refused: tuple[Refused, ...]
    notes: dict[str, int]

    @property
    def by_reason(self) -> dict[NeuroReason, int]:
        """How many samples were refused for each reason, the most frequent first."""
        return dict(Counter(refused.error.reason for refused in self.refused).most_common())

    def table(self) -> str:
        """Counts by kind and by reason, each reason with an example and what to do."""
        total = len(self.kept) + len(self.refused)
        kinds = Counter(record.kind for record in self.kept)
        lines = [f"{total:,} samples: {len(self.kept):,} usable, {len(self.refused):,} refused"]
        lines += [f"  {kind:<20} {count:>8,}" for kind, count in sorted(kinds.items())]
        for reason, count in self.by_reason.items():
            example = next(refused for refused in self.refused if refused.error.reason == reason)
            lines.append(f"  refused, {reason:<20} {count:>8,}  e.g. {example.sample_id}: {example.error.detail}")
            lines.append(f"    {REMEDY[reason]}")
        lines += [f"  note: {note} ({count:,} images)" for note, count in sorted(self.notes.items())]
        return "\n".join(lines)

    def check_share(self, max_bad_fraction: float) -> None:
        """Raises ValueError, with the table, where nothing is left or more than this share was refused.

        Samples of a modality that is switched off do not count as bad.
        """
        bad = len(self.refused) - self.by_reason.get(NeuroReason.NOT_ENABLED, 0)
        if not self.kept:
            raise ValueError(f"no sample can be used.\n{self.table()}")
        if bad > max_bad_fraction * (len(self.kept) + bad):
            raise ValueError(
                f"{bad:,} of {len(self.kept) + bad:,} samples were refused; data.max_bad_fraction={max_bad_fraction} "
                f"allows fewer: mend them, or raise it.\n{self.table()}"
            )


def check_records(
    records: Sequence[Conversation],
    source: ImageSource,
    encoder: PromptEncoder | None = None,
    refused: Iterable[Refused] = (),
) -> Audit:
    """Checks every image once, however many samples share it, and with an encoder the length of every row.

    refused: what the reader of the records has refused already. No voxel is read.
    """
    seen: dict[ImageRef, NeuroFileError | tuple[str, ...]] = {}
    kept, bad = [], list(refused)
    for record in records:
        try:
            for ref in record.images:
                if ref not in seen:
                    seen[ref] = _checked(source, ref)
                if isinstance(found := seen[ref], NeuroFileError):
                    raise found
            if encoder is not None:
                encoder.encode(record)
        except NeuroFileError as error:
            bad.append(Refused(record.sample_id, error))
            continue
        kept.append(record)
    notes = Counter(note for found in seen.values() if not isinstance(found, NeuroFileError) for note in found)
    return Audit(kept=tuple(kept), refused=tuple(bad), notes=dict(notes))


def _checked(source: ImageSource, ref: ImageRef) -> NeuroFileError | tuple[str, ...]:
    """Notes about an image, or why it cannot be used."""
    try:
        return source.check(ref)
    except NeuroFileError as error:
        return error
