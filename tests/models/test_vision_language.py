import math
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.batch import ConversationBatch
from oct_foundation.losses.inactive import unowned
from oct_foundation.models.language import LanguageConfig, LanguageModel, causal_mask
from oct_foundation.models.vision_language import (
    TokenIds,
    VisionLanguageConfig,
    VisionLanguageModel,
    check_places,
    place_features,
)
from oct_foundation.models.volume_patches import PatchLayout, VolumeEmbedding, cut_patches, pool_tokens

LAYOUTS = {
    "T1": PatchLayout(shape=(1, 8, 8, 8), patch_size=(4, 4, 4), pool=(2, 2, 1)),  # 2 image tokens
    "rsfMRI": PatchLayout(shape=(1, 8, 4, 4, 6), patch_size=(4, 4, 4, 2), pool=None),  # 6
    "dMRI": PatchLayout(shape=(1, 8, 8, 8), patch_size=(4, 4, 4), pool=(2, 2, 2)),  # 1
}
TOKENS = TokenIds(vocabulary_size=20, image={"T1": 17, "rsfMRI": 18, "dMRI": 19}, end=1)
CONFIG = VisionLanguageConfig(
    modalities=LAYOUTS, language=LanguageConfig(width=32, num_heads=2), width=24, depth=2, num_heads=2
)
QUESTION, LENGTH = (5, 6, 7), 14


def model_of(config: VisionLanguageConfig = CONFIG, seed: int = 0) -> VisionLanguageModel:
    torch.manual_seed(seed)
    return VisionLanguageModel(config, TOKENS)


def batch_of(rows: dict[str, list[tuple[int, ...]]], images: dict[str, torch.Tensor] | None = None, length=LENGTH):
    """Rows of `modality (or text) -> answers`: image places, question, answer, end, padding."""
    ids, labels, mask = [], [], []
    for name, answers in rows.items():
        image = [TOKENS.image[name]] * LAYOUTS[name].num_image_tokens if name in LAYOUTS else []
        for answer in answers:
            prompt, reply = [*image, *QUESTION], [*answer, TOKENS.end]
            padding = length - len(prompt) - len(reply)
            ids.append(prompt + reply + [0] * padding)
            labels.append([-100] * len(prompt) + reply + [-100] * padding)
            mask.append([1] * (length - padding) + [0] * padding)
    if images is None:
        generator = torch.Generator().manual_seed(3)
        images = {
            name: torch.randn(len(answers), *LAYOUTS[name].shape, generator=generator)
            for name, answers in rows.items()
            if name in LAYOUTS
        }
    return ConversationBatch(
        images=images,
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        labels=torch.tensor(labels),
        rows={name: len(answers) for name, answers in rows.items()},
    )


def loss_of(model: nn.Module, batch: ConversationBatch, **more):
    return model(batch.images, batch.input_ids, batch.attention_mask, batch.labels, batch.rows, **more)


def embeddings_of(model: VisionLanguageModel, batch: ConversationBatch) -> torch.Tensor:
    """Text and images as the language model reads them."""
    images = model.look(batch.images, batch.input_ids)
    text = model.language_model.network.get_input_embeddings()(batch.input_ids)
    return torch.where(images.shown[..., None], images.embeddings, text)


def logits_of(model: VisionLanguageModel, images, input_ids, attention_mask) -> torch.Tensor:
    return model.language_model(input_ids, attention_mask, model.look(images, input_ids))


ALL = {"T1": [(8,), (9,)], "rsfMRI": [(10, 11)], "dMRI": [(12,)], "text": [(13, 14, 15)]}


def test_a_product_with_the_kernel_is_the_convolution():
    torch.manual_seed(0)
    embedding, volume = VolumeEmbedding(LAYOUTS["T1"], 24), torch.randn(2, 1, 8, 8, 8)
    convolved = embedding.proj(volume).flatten(2).transpose(1, 2) + embedding.positional_embeddings
    torch.testing.assert_close(embedding(volume), convolved, rtol=1e-5, atol=1e-6)


def test_four_dimensional_patches_hold_their_own_voxels_and_frames():
    volume = torch.arange(2 * 8 * 4 * 4 * 6.0).reshape(2, 1, 8, 4, 4, 6)
    patches = cut_patches(volume, (4, 4, 4, 2))
    for number in range(6):  # two places along the first axis, three along time, which runs fastest
        place, window = divmod(number, 3)
        by_hand = volume[:, 0, 4 * place : 4 * place + 4, :, :, 2 * window : 2 * window + 2]
        torch.testing.assert_close(patches[:, number], by_hand.flatten(1))
    assert VolumeEmbedding(LAYOUTS["rsfMRI"], 24).proj.weight.shape == (24, 4 * 4 * 4 * 2)


def test_pooling_is_the_mean_over_neighbouring_patches():
    layout = LAYOUTS["T1"]
    tokens = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    pooled, grid = pool_tokens(tokens, layout), tokens.reshape(3, 2, 2, 2, 5)
    by_hand = torch.stack([grid[:, :, :, last].reshape(3, 4, 5).mean(1) for last in range(2)], dim=1)
    torch.testing.assert_close(pooled, by_hand)
    assert pooled.shape[1] == layout.num_image_tokens


def test_names_of_the_embeddings_are_those_of_the_logs():
    names = {name for name, _ in model_of().named_parameters()}
    for modality in LAYOUTS:
        assert f"vision_tower.{modality}_patch_embed.proj.weight" in names
        assert f"vision_tower.{modality}_patch_embed.positional_embeddings" in names


@pytest.mark.parametrize(("size", "patch", "fits"), [(128, 18, "16 or 32.*126 or 144"), (96, 10, "8 or 12.*90 or 100")])
def test_patches_that_would_cut_the_volume_are_refused_with_sizes_that_fit(size, patch, fits):
    with pytest.raises(ValueError, match=rf"axis 0 has {size} voxels.*{fits}"):
        PatchLayout(shape=(1, size, size, size), patch_size=(patch,) * 3)


def test_a_pool_that_does_not_divide_the_patches_is_refused():
    with pytest.raises(ValueError, match=r"pool \[3, 1, 1\] does not divide \[8, 8, 8\]"):
        PatchLayout(shape=(1, 128, 128, 128), patch_size=(16, 16, 16), pool=(3, 1, 1))


def test_sizes_of_the_original_give_its_token_counts():
    assert PatchLayout(shape=(1, 96, 96, 96, 20), patch_size=(16, 16, 16, 5)).num_patches == 864
    assert PatchLayout(shape=(1, 96, 96, 96, 24), patch_size=(16, 16, 16, 3)).num_patches == 1728


def test_features_land_at_their_places_as_a_slow_loop_puts_them():
    generator = torch.Generator().manual_seed(1)
    embeddings, features = (torch.randn(*shape, generator=generator) for shape in ((4, 9, 6), (3, 4, 6)))
    places = torch.zeros(4, 9, dtype=torch.bool)
    places[0, 2:6] = places[2, :4] = places[2, 5:9] = True  # row 1 and 3: none; row 2: two images
    expected, waiting = embeddings.clone(), iter(features.flatten(0, 1))
    for row in range(4):
        for place in range(9):
            if places[row, place]:
                expected[row, place] = next(waiting)
    torch.testing.assert_close(place_features(embeddings, places, features), expected, rtol=0, atol=0)


def test_an_image_of_one_row_reaches_that_row_alone():
    model, batch = model_of(), batch_of(ALL)
    before = model.look(batch.images, batch.input_ids).embeddings
    changed = {**batch.images, "T1": batch.images["T1"].clone()}
    changed["T1"][1] += 1
    moved = (model.look(changed, batch.input_ids).embeddings != before).any(-1)
    assert moved.nonzero().tolist() == [[1, 0], [1, 1]], "row 1 holds the second T1, at its first two places"


def test_loss_equals_that_of_transformers_where_answers_have_one_length():
    model, batch = model_of(), batch_of({"T1": [(8,), (9,)], "dMRI": [(12,)], "text": [(13,)]})
    theirs = model.language_model.network(
        inputs_embeds=embeddings_of(model, batch),
        attention_mask=batch.attention_mask,
        labels=batch.labels,
    ).loss
    assert loss_of(model, batch).loss.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_a_question_counts_once_however_long_its_answer():
    model, batch = model_of(), batch_of(ALL)
    found = loss_of(model, batch)
    logits = logits_of(model, batch.images, batch.input_ids, batch.attention_mask)
    by_row = [F.cross_entropy(logits[row, :-1], batch.labels[row, 1:]).item() for row in range(5)]
    assert found.loss.item() == pytest.approx(sum(by_row) / 5, rel=1e-6)
    assert found.counts == {"T1": 2, "rsfMRI": 1, "dMRI": 1, "text": 1}
    by_modality = {"T1": sum(by_row[:2]), "rsfMRI": by_row[2], "dMRI": by_row[3], "text": by_row[4]}
    assert {name: value.item() for name, value in found.sums.items()} == pytest.approx(by_modality, rel=1e-6)
    assert not any(value.requires_grad for value in found.sums.values())
    batch.labels[1] = -100
    without = loss_of(model, batch)
    assert without.loss.item() == pytest.approx((sum(by_row) - by_row[1]) / 4, rel=1e-6)
    assert without.counts == {"T1": 1, "rsfMRI": 1, "dMRI": 1, "text": 1}, "a row without an answer is no question"


def test_token_means_over_all_ranks_are_those_of_the_hugging_face_trainer():
    model, batch = model_of(), batch_of(ALL)
    num_tokens = int((batch.labels[:, 1:] != -100).sum())
    logits = logits_of(model, batch.images, batch.input_ids, batch.attention_mask)
    theirs = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    assert loss_of(model, batch, num_items_in_batch=num_tokens).loss.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_padding_on_either_side_changes_nothing():
    model, batch = model_of().eval(), batch_of({"T1": [(8,)]})
    text = int(batch.attention_mask.sum())
    fields = [getattr(batch, name) for name in ("input_ids", "attention_mask", "labels")]
    plain, left = ([tensor[:, :text] for tensor in fields], [tensor.roll(LENGTH - text, 1) for tensor in fields])
    losses = [model(batch.images, *tensors, batch.rows).loss.item() for tensors in (fields, plain, left)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_causal_mask_is_that_of_a_slow_loop():
    attention = torch.tensor([[0, 1, 1, 0]])
    found = causal_mask(attention)[0, 0]
    for query in range(4):
        for key in range(4):
            assert found[query, key] == (query == key or (key < query and attention[0, key] == 1))


@pytest.mark.parametrize("present", [("T1",), ("rsfMRI",), ("dMRI",), ("T1", "dMRI"), ()])
def test_only_branches_of_the_batch_get_a_gradient(present):
    """Three branches, told apart by key: a dMRI volume has the shape of a T1 and must not train its embedding."""
    model = model_of()
    loss_of(model, batch_of({name: ALL[name] for name in (*present, "text")})).loss.backward()
    for name, parameters in model.branches().items():
        for parameter in parameters:
            assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in present)
    assert all((parameter.grad is not None) == bool(present) for parameter in model.trunk())
    assert all(parameter.grad is not None for parameter in model.language_model.parameters())


def test_branches_trunk_and_language_model_are_all_there_is():
    model = model_of()
    batches = {name: batch_of({name: answers}) for name, answers in ALL.items()}
    assert unowned(model, lambda batch: loss_of(model, batch).loss, batches, model.branches()) == {}
    listed = [*(p for ps in model.branches().values() for p in ps), *model.trunk(), *model.language_model.parameters()]
    assert {id(parameter) for parameter in listed} == {id(parameter) for parameter in model.parameters()}
    assert len(listed) == len(list(model.parameters()))


def test_absent_branches_run_on_an_empty_token_change_no_loss_and_get_zero_gradients():
    batch, plain, running = batch_of({"T1": [(8,)], "text": [(9,)]}), model_of(), model_of()
    running.runs_absent = True
    losses = [loss_of(model, batch).loss for model in (plain, running)]
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()
    for (name, expected), found in zip(plain.named_parameters(), running.parameters(), strict=True):
        assert found.grad is not None, name
        expected_grad = torch.zeros_like(found) if expected.grad is None else expected.grad
        torch.testing.assert_close(found.grad, expected_grad, rtol=0, atol=0)


def test_bfloat16_autocast_keeps_the_loss_and_the_gradients_in_float32():
    model, batch = model_of(), batch_of(ALL)
    model.runs_absent = True
    exact = loss_of(model, batch).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(
            model, batch_of({**ALL, "dMRI": []}, {k: v for k, v in batch.images.items() if k != "dMRI"})
        ).loss
        rounded = loss_of(model, batch).loss
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact, rel=0.02)
    loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_modality_without_a_branch_is_refused():
    small = VisionLanguageConfig(modalities={"T1": LAYOUTS["T1"]}, language=CONFIG.language, width=24, num_heads=2)
    with pytest.raises(ValueError, match="holds dMRI; this model has branches for T1 only"):
        loss_of(model_of(small), batch_of({"dMRI": [(8,)]}))


def test_a_volume_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must be \[1, 8, 8, 8\]; found \[1, 8, 8, 4\]"):
        loss_of(model_of(), batch_of({"T1": [(8,)]}, {"T1": torch.zeros(1, 1, 8, 8, 4)}))


def test_places_that_do_not_match_the_images_are_refused():
    batch = batch_of(ALL)
    check_places(batch, CONFIG, TOKENS)
    batch.input_ids[0, 0] = QUESTION[0]
    with pytest.raises(ValueError, match="2 images of T1 need 2 places each in the text; found 3"):
        check_places(batch, CONFIG, TOKENS)


def test_shapes_do_not_depend_on_values_so_one_program_serves_all_batches():
    """Dynamo with fullgraph refuses what asks the host about a tensor; a second batch must not make another program."""
    from torch._dynamo.testing import CompileCounter

    model, counter = model_of(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    first, second = (
        batch_of(ALL),
        batch_of({"T1": [(9,), (8, 8, 8)], "rsfMRI": [(10,)], "dMRI": [(9, 9)], "text": [(3,)]}),
    )
    for batch in (first, second):
        assert loss_of(compiled, batch).loss.item() == pytest.approx(loss_of(model, batch).loss.item(), rel=1e-6)
    assert counter.frame_count == 1


def test_toy_brains_are_learned_by_heart_and_named_by_generation():
    """Three modalities x two brightnesses, six answers: the image alone tells which."""
    answers = {"T1": [(8,), (9,)], "rsfMRI": [(10,), (11,)], "dMRI": [(12,), (13,)]}
    images = {name: torch.stack([torch.full(LAYOUTS[name].shape, value) for value in (-1.0, 1.0)]) for name in answers}
    model, batch = model_of().train(), batch_of(answers, images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    begin = time.perf_counter()
    for _ in range(150):
        loss = loss_of(model, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    assert loss.item() < 0.1 < math.log(6), f"{loss.item():.3f} after {time.perf_counter() - begin:.1f} s"
    generated = model.generate(batch, max_new_tokens=4)
    assert generated.tolist() == [[answer, 1, 1, 1] for answer in range(8, 14)]
    assert model.training, "the training mode is put back"


def test_generation_does_not_see_the_answer_and_equals_step_by_step_argmax():
    model, batch = model_of().eval(), batch_of({"T1": [(8, 9, 10)], "text": [(13,)]})
    found = model.generate(batch, max_new_tokens=3)
    for row, image, num_prompt in ((0, batch.images, 5), (1, {}, 3)):
        ids = batch.input_ids[row : row + 1, :num_prompt]
        ended = False
        for number in range(3):
            logits = logits_of(model, image, ids, torch.ones_like(ids))
            token = torch.tensor([[TOKENS.end]]) if ended else logits[:, -1:].argmax(-1)
            ended = ended or token.item() == TOKENS.end
            assert found[row, number] == token
            ids = torch.cat((ids, token), 1)


@pytest.fixture(scope="module")
def saved_gpt2(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(vocab_size=12, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_language_model_comes_from_a_path_in_float32_with_room_for_the_image_tokens(saved_gpt2):
    language = LanguageConfig(name=str(saved_gpt2), gradient_checkpointing=True)
    config = VisionLanguageConfig(modalities=LAYOUTS, language=language, width=24, depth=1, num_heads=2)
    model = VisionLanguageModel(config, TOKENS).train()
    assert model.language_model.network.get_input_embeddings().weight.shape == (20, 32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.language_model.network.is_activation_checkpointing
    loss_of(model, batch_of(ALL)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"rows of 65 tokens, .* the model reads 64"):
        model.language_model(*torch.ones(2, 1, 65, dtype=torch.long))


def test_what_is_no_causal_decoder_with_full_attention_is_refused(tmp_path):
    from transformers import MistralConfig, ViTConfig

    ViTConfig().save_pretrained(tmp_path / "vit")
    MistralConfig(sliding_window=64).save_pretrained(tmp_path / "mistral")
    with pytest.raises(ValueError, match="of kind 'vit', no causal language model"):
        LanguageModel(LanguageConfig(name=str(tmp_path / "vit")), 20)
    with pytest.raises(ValueError, match="sliding_window 64"):
        LanguageModel(LanguageConfig(name=str(tmp_path / "mistral")), 20)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: VisionLanguageConfig(modalities={}), "enable at least one"),
        (lambda: VisionLanguageConfig(modalities=LAYOUTS, width=25, num_heads=2), "25 does not divide"),
        (lambda: LanguageConfig(width=36, num_heads=8), "multiple of twice"),
        (lambda: PatchLayout(shape=(8, 8, 8), patch_size=(4, 4, 4)), "channels and 3 or 4 sides"),
        (lambda: PatchLayout(shape=(1, 8, 8, 8), patch_size=(4, 4)), "3 positive numbers"),
    ],
)
def test_impossible_settings_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_missing_image_token_is_refused():
    with pytest.raises(ValueError, match="modality dMRI needs an image token below 20"):
        VisionLanguageModel(CONFIG, TokenIds(vocabulary_size=20, image={"T1": 17, "rsfMRI": 18}, end=1))
