"""Text to ids: what is trained on, what a place for an image becomes, what is too long."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_setup.neuro.errors import NeuroFileError
from data_setup.neuro.prompt import IGNORED, PromptEncoder
from data_setup.neuro.tokenizer import byte_tokenizer, image_token_ids, load_tokenizer

TOKENIZER = byte_tokenizer()
COUNTS = {"T1": 8, "rsfMRI": 3, "dMRI": 8}


def encoder(max_length: int = 80) -> PromptEncoder:
    return PromptEncoder(TOKENIZER, COUNTS, max_length)


def test_the_tokenizer_knows_bytes_and_six_tokens() -> None:
    assert len(TOKENIZER) == 256 + 6
    assert [TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id] == [0, 1, 2]
    assert image_token_ids(TOKENIZER) == {"T1": 3, "rsfMRI": 4, "dMRI": 5}


@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    if "<" in text:
        return  # may spell a special token
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode("utf-8", "surrogatepass"))
    assert TOKENIZER.decode(ids) == text


def test_a_saved_tokenizer_and_one_that_lacks_image_tokens(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "whole")
    again = load_tokenizer(str(tmp_path / "whole"))
    assert len(again) == 262
    assert again("a<image_fMRI>b")["input_ids"] == TOKENIZER("a<image_fMRI>b")["input_ids"]
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"left": 0, "<end>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>")
    foreign.save_pretrained(tmp_path / "foreign")
    with pytest.raises(ValueError, match="load_tokenizer"):
        image_token_ids(foreign)
    loaded = load_tokenizer(str(tmp_path / "foreign"))
    assert image_token_ids(loaded) == {"T1": 3, "rsfMRI": 4, "dMRI": 5}
    assert loaded.pad_token_id == 1
    no_end = PreTrainedTokenizerFast(tokenizer_object=words)
    no_end.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="no eos token"):
        load_tokenizer(str(tmp_path / "endless"))


def test_a_row_is_the_template_and_only_the_answer_is_trained_on(make_record) -> None:
    encoded = encoder().encode(make_record("T1", question="Where?", answer="left"))
    expected = [1, *b"USER: ", *[3] * 8, *b"\nWhere? ASSISTANT: ", *b"left", 2]
    spoken = [i if i in (1, 2, 3) else TOKENIZER(chr(i))["input_ids"][0] for i in expected]
    assert encoded.input_ids == spoken
    assert encoded.labels == [IGNORED] * (len(spoken) - 5) + spoken[-5:]
    assert encoder().prompt_ids(make_record("T1")) == spoken[:-5]
    assert encoder().decode(encoded.input_ids) == "USER: \nWhere? ASSISTANT: left"


def test_each_image_of_a_row_gets_its_own_number_of_tokens(make_record) -> None:
    ids = encoder().encode(make_record("T1", "rsfMRI", "T1")).input_ids
    assert [ids.count(token) for token in (3, 4, 5)] == [16, 3, 0]


def test_what_is_too_long_is_refused_with_its_sizes_and_never_cut(make_record) -> None:
    record = make_record("T1")
    exact = len(encoder().encode(record).input_ids)
    assert len(encoder(exact).encode(record).input_ids) == exact
    with pytest.raises(NeuroFileError, match=r"8 image tokens \+ 26 of the question \+ 5 of the answer = 39.*is 38"):
        encoder(exact - 1).encode(record)
    with pytest.raises(ValueError, match="max_length"):
        encoder(1)


def test_an_image_token_in_an_answer_is_refused(make_record) -> None:
    with pytest.raises(NeuroFileError, match="image_places"):
        encoder().encode(make_record("T1", answer="<image_sMRI>"))


def test_answers_are_compared_as_tokens_give_them_back() -> None:
    from tokenizers import normalizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert PromptEncoder(tokenizer, {"T1": 8}, 60).spoken(" Left") == "left"


@pytest.mark.parametrize("name", ["/no/such/folder", "./no_such_folder"])
def test_a_folder_that_is_not_there_is_no_name_of_a_hub(name: str) -> None:
    with pytest.raises(OSError, match="no such folder"):
        load_tokenizer(name)
