"""Both generations of JSON become the same records; spellings of files end at this border."""

import json
from pathlib import Path

import pytest

from data_setup.neuro.conversations import ImageRef, read_conversations, samples_of
from data_setup.neuro.errors import NeuroFileError

FIRST = {
    "task_id": "t1",
    "subject_id": "sub-7",
    "modality_paths": {"sMRI": "a.nii.gz"},
    "conversations": [{"from": "human", "value": "<image>\nHow old?"}, {"from": "gpt", "value": "45"}],
    "metadata": {"age": 45, "sex": 1},
}
SECOND = {
    "task_id": "t1",
    "task_type": "T1",  # a task, not the modality
    "subject_ids": ["sub-7", "sub-9"],
    "modalities": ["sMRI"],
    "images": [{"path": "a.nii.gz", "token": "<image>", "modality": "sMRI"}],
    "conversations": [
        {
            "role": "user",
            "content": [
                {"type": "image", "modality": "sMRI", "image_path": "a.nii.gz"},
                {"type": "text", "text": "How old?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "45"}]},
    ],
    "metadata": {"age": 45, "sex": 1},
}

ONE_PLACE = [{"role": "user", "content": "<image> Alike?"}, {"role": "assistant", "content": "yes"}]


def with_turns(*turns: str, **changes) -> dict:
    """Generation 1 with these turns, question and answer in turn."""
    spoken = [{"from": ("human", "gpt")[number % 2], "value": turn} for number, turn in enumerate(turns)]
    return {**FIRST, "conversations": spoken, **changes}


def test_both_generations_give_the_same_record() -> None:
    [first], [second] = samples_of(FIRST, "t1"), samples_of(SECOND, "t1")
    assert first == second
    assert (first.sample_id, first.subject_id, first.kind) == ("t1", "sub-7", "T1")
    assert first.images == (ImageRef("T1", "a.nii.gz"),)
    assert (first.prompt, first.answer) == ("<image_sMRI>\nHow old?", "45")


def test_a_task_type_says_nothing_about_the_modality() -> None:
    changed = json.loads(json.dumps(SECOND).replace("sMRI", "fMRI"))
    [record] = samples_of({**changed, "task_type": "T1"}, "x")
    assert record.images == (ImageRef("rsfMRI", "a.nii.gz"),)


def test_generation_2_with_plain_text_takes_images_from_the_top() -> None:
    turns = [{"role": "user", "content": "<image>\nHow old?"}, {"role": "assistant", "content": "45"}]
    assert samples_of({**SECOND, "conversations": turns}, "t1") == samples_of(SECOND, "t1")


@pytest.mark.parametrize("spelling", ["T1", "sMRI"])
def test_both_spellings_of_a_modality_mean_one(spelling: str) -> None:
    [record] = samples_of({**FIRST, "modality_paths": {spelling: "a.nii"}}, "x")
    assert record.kind == "T1"


def test_images_stand_where_the_text_has_them() -> None:
    paths = {"sMRI": "a", "dMRI": "b"}
    [record] = samples_of(with_turns("First <image> then <image>?", "yes", modality_paths=paths), "x")
    assert record.prompt == "First <image_sMRI> then <image_dMRI>?"
    assert record.kind == "T1&dMRI"
    [bare] = samples_of(with_turns("Same?", "no", modality_paths=paths), "x")
    assert bare.prompt == "<image_sMRI>\n<image_dMRI>\nSame?"


def test_several_images_that_share_one_place_make_a_sample_each() -> None:
    records = samples_of({**FIRST, "modality_paths": {"sMRI": "a", "fMRI": "b/", "dMRI": "c"}}, "x")
    assert [(r.sample_id, r.kind, r.prompt) for r in records] == [
        ("x:T1", "T1", "<image_sMRI>\nHow old?"),
        ("x:rsfMRI", "rsfMRI", "<image_fMRI>\nHow old?"),
        ("x:dMRI", "dMRI", "<image_dMRI>\nHow old?"),
    ]
    [only] = samples_of(with_turns("<image_fMRI>\nHow?", "45", modality_paths={"sMRI": "a", "fMRI": "b/"}), "x")
    assert only.images == (ImageRef("rsfMRI", "b/"),)


def test_each_answer_is_a_sample_with_the_turns_before_it() -> None:
    first, second = samples_of(with_turns("<image>\nOld?", "yes", "How old?", "81"), "x")
    assert (first.sample_id, first.prompt, first.answer) == ("x#0", "<image_sMRI>\nOld?", "yes")
    assert (second.sample_id, second.answer) == ("x#1", "81")
    assert second.prompt == "<image_sMRI>\nOld? ASSISTANT: yes USER: How old?"


def test_an_image_of_a_later_turn_is_not_in_an_earlier_sample() -> None:
    paths = {"sMRI": "a", "dMRI": "b"}
    first, second = samples_of(with_turns("<image> a?", "x", "<image> b?", "y", modality_paths=paths), "x")
    assert (first.kind, second.kind) == ("T1", "T1&dMRI")


def test_text_without_an_image_is_a_kind_of_its_own() -> None:
    [record] = samples_of(with_turns("Is the sky blue?", "yes", modality_paths={}), "x")
    assert (record.kind, record.prompt) == ("text", "Is the sky blue?")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("no object", "bad_json"),
        ({"conversations": "none"}, "bad_json"),
        ({"conversations": [{"from": "human", "value": "?"}], "subject_id": "s"}, "bad_json"),
        ({**FIRST, "modality_paths": {"CT": "a"}}, "unknown_modality"),
        ({**FIRST, "modality_paths": {"sMRI": 7}}, "bad_json"),
        ({**FIRST, "conversations": [{"from": "dog", "value": "?"}]}, "bad_json"),
        ({**FIRST, "subject_id": None}, "no_subject"),
        (with_turns("<image> <image>?", "a"), "image_places"),
        (with_turns("<image_fMRI>?", "a"), "image_places"),
        (with_turns("?", "<image>"), "image_places"),
        ({**SECOND, "images": SECOND["images"] * 2, "conversations": ONE_PLACE}, "image_places"),
        (with_turns("<image>?"), "no_answer"),
        (with_turns("<image>?", "  "), "no_answer"),
        (with_turns("<image>?", "a", metadata=[1]), "bad_json"),
    ],
)
def test_what_is_wrong_is_refused_by_reason(entry, reason: str) -> None:
    with pytest.raises(NeuroFileError) as caught:
        samples_of(entry, "x")
    assert caught.value.reason == reason


def numbered(count: int) -> list[dict]:
    return [{**FIRST, "task_id": f"t{number}"} for number in range(count)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(numbered(3)),
        json.dumps(numbered(3), indent=2),
        "\n".join(json.dumps(entry) for entry in numbered(3)),
        "\ufeff" + json.dumps(numbered(3)),
        "\n".join(json.dumps({**entry, "note": "a\u2028b\x85"}, ensure_ascii=False) for entry in numbered(3)),
    ],
)
def test_a_list_and_json_lines_hold_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    records, refused = read_conversations(tmp_path / "a.json")
    assert [record.sample_id for record in records] == ["t0", "t1", "t2"]
    assert refused == []


def test_one_object_and_a_folder_of_files(tmp_path: Path) -> None:
    for number, entry in enumerate(numbered(3)):
        (tmp_path / f"{number}.json").write_text(json.dumps(entry))
    assert len(read_conversations(tmp_path)[0]) == 3
    assert len(read_conversations(tmp_path / "1.json")[0]) == 1


def test_a_bad_entry_is_counted_and_the_others_are_kept(tmp_path: Path) -> None:
    good, bad = numbered(2)
    lines = [json.dumps(good), '{"task_id": "cut', json.dumps({**bad, "modality_paths": {"CT": "a"}})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    records, refused = read_conversations(tmp_path / "a.jsonl")
    assert [record.sample_id for record in records] == ["t0"]
    assert [(found.sample_id, found.error.reason) for found in refused] == [
        ("a:1", "bad_json"),
        ("t1", "unknown_modality"),
    ]
    assert "a.jsonl, line 2" in refused[0].error.detail


@pytest.mark.parametrize(("text", "reason"), [("", "empty"), ("[1,", "bad_json"), ("{", "bad_json")])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(NeuroFileError, match=reason):
        read_conversations(tmp_path / "a.json")
    with pytest.raises(NeuroFileError, match="missing"):
        read_conversations(tmp_path / "b.json")
