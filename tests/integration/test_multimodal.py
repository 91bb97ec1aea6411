"""Models that also see or hear, trained on rows of text: what is loaded, what is left alone, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import peftctl
from peftctl.data.collate import Collator
from peftctl.errors import UsageError
from peftctl.evaluation.loss import evaluate
from peftctl.methods import METHODS, DataFacts
from peftctl.methods.parts import left_alone
from peftctl.model import adapter, attach, load, skeleton, targets
from peftctl.model.locate import Base
from peftctl.model.profile import profile
from peftctl.recipe.schema import ModelSettings
from peftctl.tasks import TASKS, Layout
from peftctl.text.tokens import Encoded
from tests import jobs, tiny

TASK = TASKS["causal_lm"]

SEES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {**SEES, "image_size": 28, "patch_size": 14}
TEXT = {**tiny.SIZES, "initializer_range": 0.2}
POSITIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
LAYER = 7  # linear layers in one of the text model's


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(**IMAGE, projection_dim=32)
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=263)


def qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig

    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": POSITIONS},
        vision_config=vision,
        image_token_id=263,
        video_token_id=262,
    )


def gemma3() -> Any:
    from transformers import Gemma3Config

    text = {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8}
    return Gemma3Config(text_config=text, vision_config=IMAGE, mm_tokens_per_image=4, image_token_index=263)


def mllama() -> Any:
    from transformers import MllamaConfig

    vision = {**SEES, "num_global_layers": 1, "attention_heads": 4, "image_size": 28, "patch_size": 14,
              "vision_output_dim": 64, "intermediate_layers_indices": [1], "supported_aspect_ratios": [[1, 1]],
              "max_num_tiles": 1}  # fmt: skip
    text = {**TEXT, "bos_token_id": 257, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    return MllamaConfig(text_config=text, vision_config=vision)


def qwen2_audio() -> Any:
    from transformers import Qwen2AudioConfig, Qwen2Config

    audio = {"model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
             "encoder_ffn_dim": 64, "num_mel_bins": 16}  # fmt: skip
    return Qwen2AudioConfig(text_config=Qwen2Config(**TEXT), audio_config=audio, audio_token_index=263)


def qwen3_5() -> Any:
    from transformers import Qwen3_5Config

    text = {**TEXT, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
              "patch_size": 14, "num_position_embeddings": 16}  # fmt: skip
    return Qwen3_5Config(text_config=text, vision_config=vision, image_token_id=263, video_token_id=262)


MADE = {make.__name__: make for make in (llava, qwen2_vl, gemma3, mllama, qwen2_audio, qwen3_5)}


def whole(name: str) -> Any:
    """The whole of it, random, with everything that it has."""
    from transformers import AutoModelForMultimodalLM

    torch.manual_seed(0)
    return AutoModelForMultimodalLM.from_config(MADE[name]())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("models")
    return {name: tiny.save(made / name, whole(name)) for name in MADE}


# What of each rows of text do not go through, and the class that is loaded.
LEFT = {
    "llava": ("LlavaForConditionalGeneration", ("model.vision_tower", "model.multi_modal_projector")),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", ("model.visual",)),
    "gemma3": ("Gemma3ForConditionalGeneration", ("model.vision_tower", "model.multi_modal_projector")),
    "mllama": ("MllamaForCausalLM", ("model.layers.1",)),
    "qwen2_audio": ("Qwen2AudioForConditionalGeneration", ("model.audio_tower", "model.multi_modal_projector")),
    "qwen3_5": ("Qwen3_5ForCausalLM", ()),
}
WHOLE = ("llava", "qwen2_vl", "gemma3")


def loaded(folder: Path) -> tuple[Any, list[str]]:
    notes: list[str] = []
    base = Base(str(folder), folder, "folder")
    return load.load_model(base, ModelSettings(name="m"), TASKS["causal_lm"], "float32", notes.append), notes


def method(name: str, **settings: Any) -> tuple[Any, Any]:
    found = METHODS[name]
    return found, found.resolve(found.settings(name=name, **settings))


@pytest.mark.parametrize("name", MADE)
def test_it_is_said_what_is_loaded_and_what_is_left_alone(name: str, folders: dict[str, Path]) -> None:
    model, notes = loaded(folders[name])
    kind, parts = LEFT[name]
    assert type(model).__name__ == kind
    assert left_alone(model) == parts
    alone = [f"{folders[name]}: its text model alone is loaded, a {kind}, and nothing else of it"]
    assert notes[:1] == (alone if kind.endswith("ForCausalLM") else notes[:1])
    if parts:
        has = [module for part in parts for module in model.get_submodule(part).modules() if module._parameters]
        assert notes[-1] == (
            f"{folders[name]}: rows of text do not go through {' and '.join(parts)}, "
            f"and {len(has)} modules there are left alone"
        )
    assert len(notes) == bool(parts) + kind.endswith("ForCausalLM")


@pytest.mark.parametrize("name", MADE)
def test_what_is_left_alone_is_what_a_row_of_text_leaves_alone(name: str, folders: dict[str, Path]) -> None:
    """By watching which modules with parameters a forward pass calls."""
    model, _ = loaded(folders[name])
    called: set[str] = set()
    for at, module in model.named_modules():
        module.register_forward_hook(lambda *_, at=at: called.add(at))
    model(input_ids=torch.tensor([[1, 2, 3]]), attention_mask=torch.ones(1, 3, dtype=torch.long), use_cache=False)
    linear = {at for at, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(targets.resolve(model, ["all-linear"])) == (linear & called) - {"lm_head"}


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("phi4_multimodal", ("model.embed_tokens_extend",)),  # within the decoder itself
        ("git", ("git.image_encoder",)),
        ("mistral3", ("model.vision_tower", "model.multi_modal_projector")),
        ("idefics2", ("model.vision_model", "model.connector")),
        ("qwen2_5_vl", ("model.visual",)),
        ("llama4", ("vision_model", "multi_modal_projector")),
        ("voxtral", ("model.audio_tower", "model.multi_modal_projector")),
        ("janus", ("model.vision_model", "model.aligner", "model.vqmodel", "model.generation_embeddings",
                   "model.generation_aligner", "model.generation_head")),
    ],
)  # fmt: skip
def test_other_architectures_leave_alone_what_sees_and_hears(kind: str, parts: tuple[str, ...]) -> None:
    """By name, on models without weights."""
    from transformers import AutoConfig, AutoModelForMultimodalLM

    with torch.device("meta"):
        model = AutoModelForMultimodalLM.from_config(skeleton.cut(AutoConfig.for_model(kind)))
    assert left_alone(model) == parts


def test_a_name_that_both_have_means_the_text_models_alone(folders: dict[str, Path]) -> None:
    model, _ = loaded(folders["llava"])
    both = [name for name, _ in model.named_modules() if name.endswith("q_proj")]
    assert any("vision_tower" in name for name in both)
    for wanted in ("q_proj", "*.q_proj", "self_attn.q_proj"):
        assert list(targets.resolve(model, [wanted])) == [name for name in both if "language_model" in name]


@pytest.mark.parametrize(
    "wanted",
    ["model.vision_tower.encoder.layers.0.self_attn.q_proj", "*vision*q_proj", "multi_modal_projector.linear_1"],
)
def test_a_name_that_text_never_goes_through_is_refused(wanted: str, folders: dict[str, Path]) -> None:
    model, _ = loaded(folders["llava"])
    part = "model.multi_modal_projector" if "projector" in wanted else "model.vision_tower"
    with pytest.raises(UsageError) as error:
        targets.resolve(model, [wanted])
    assert error.value.message == (
        f"method.targets: {wanted!r} matches only what is in {part}, which rows of text never go through"
    )


@pytest.mark.parametrize("name", WHOLE)
def test_sizes_are_the_text_models(name: str, folders: dict[str, Path]) -> None:
    model, _ = loaded(folders[name])
    found = attach.anatomy(model, targets.resolve(model, ["all-linear"]))
    assert (found.width, found.layers, found.key_width) == (32, 2, 16)
    assert len(found.targets) == 2 * LAYER


@pytest.mark.parametrize("name", ["ia3", "ln_tuning"])
def test_a_methods_own_choice_leaves_the_same_alone(name: str, folders: dict[str, Path]) -> None:
    model, _ = loaded(folders["llava"])
    found = targets.of(model, *method(name))
    assert any("vision_tower" in each for each in METHODS[name].choose(model))
    assert found
    assert all("language_model" in each for each in found)


def test_methods_that_select_parameters_leave_the_same_alone(folders: dict[str, Path]) -> None:
    model, _ = loaded(folders["qwen2_vl"])
    text = [name for name, _ in model.named_parameters() if not name.startswith("model.visual")]
    assert list(METHODS["full"].beside(model, method("full")[1])) == text
    assert list(METHODS["bitfit"].beside(model, method("bitfit")[1])) == [n for n in text if n.endswith("bias")]
    model, _ = loaded(folders["llava"])
    with pytest.raises(
        UsageError, match=r"nothing to train in LlavaForConditionalGeneration but in model\.vision_tower"
    ):
        METHODS["bitfit"].beside(model, method("bitfit")[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_it_learns_from_text_and_trains_nothing_that_sees(name: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForMultimodalLM

    run, events = jobs.train(
        tmp_path, folders[name], data={"eval": {"path": "train.jsonl"}}, eval={"every": 1},
        train={"epochs": 3, "learning_rate": 1e-2},
    )  # fmt: skip
    facts = jobs.manifest(run)
    first = next(event for event in events if event["event"] == "eval")
    assert facts["metrics"]["loss"] < 0.9 * first["loss"]
    assert len(facts["targets"]) == 2 * LAYER
    with safe_open(run / "adapter" / "adapter_model.safetensors", framework="pt") as saved:
        assert len(saved.keys()) == 4 * LAYER
        assert all("language_model" in key for key in saved.keys())  # noqa: SIM118 - it is not a mapping
    again = peftctl.load(run)
    measured = again.held_out()
    assert measured(again.model) == pytest.approx(facts["metrics"], rel=1e-4)
    # By transformers and PEFT alone, a row at a time without padding or packing
    plain = AutoModelForMultimodalLM.from_pretrained(folders[name], dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, run / "adapter").eval()
    total = count = 0.0
    for row in measured.rows.encoded:
        ids = torch.tensor([list(row.ids)])
        with torch.no_grad():
            lost = torch.nn.functional.cross_entropy(plain(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        weights = torch.tensor(list(row.weights)[1:])
        total, count = total + float((lost * weights).sum()), count + float(weights.sum())
    assert facts["metrics"]["loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.slow
def test_full_fine_tuning_leaves_what_sees_as_it_was_bit_for_bit(tmp_path: Path, folders: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    run, events = jobs.train(tmp_path, folders["llava"], method={"name": "full"}, train={"epochs": 2})
    assert jobs.losses(events)[-1] < jobs.losses(events)[0]
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["llava"], run / "model"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        sees = "vision_tower" in name or "multi_modal_projector" in name
        assert torch.equal(tensor, after[name].to(tensor.dtype)) is sees, name
    more, _ = jobs.train(
        tmp_path, folders["llava"], "more", method={"name": "full"}, train={"epochs": 1, "init_from": str(run)}
    )
    assert jobs.manifest(more)["artifact"] == "model"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mllama", "qwen2_audio", "qwen3_5"])
def test_others_learn_too(name: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    run, events = jobs.train(tmp_path, folders[name], train={"epochs": 3, "learning_rate": 1e-2})
    assert jobs.losses(events)[-1] < jobs.losses(events)[0]
    assert isinstance(peftctl.load(run).generate("odd", max_new_tokens=2), str)


def test_a_model_that_takes_no_text_alone_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import IdeficsConfig

    sizes = {**tiny.SIZES, "num_key_value_heads": None, "bos_token_id": 257, "additional_vocab_size": 0}
    vision = {"embed_dim": 32, "image_size": 28, "patch_size": 14, "num_attention_heads": 4, "num_hidden_layers": 1,
              "intermediate_size": 64}  # fmt: skip
    config = IdeficsConfig(
        **{k: v for k, v in sizes.items() if v is not None}, vision_config=vision, qk_layer_norms=False
    )
    folder = tiny.save(tmp_path / "model")
    config.save_pretrained(folder)
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError) as error:
        jobs.train(tmp_path, folder)
    assert error.value.message.startswith(
        f"model.name: {folder}, a IdeficsForVisionText2Text, takes no rows of text alone: Exactly 1 of pixel_values"
    )


def adapted(name: str, folders: dict[str, Path]) -> tuple[Any, Any]:
    """The peft model with LoRA in it, not at its start, and the settings."""
    model, _ = loaded(folders[name])
    found, settings = method("lora", rank=4)
    anatomy = attach.anatomy(model, targets.of(model, found, settings))
    made = attach.attach(model, found, settings, anatomy, "CAUSAL_LM", DataFacts(6, 60, 60, 20, 1))
    for at, parameter in made.named_parameters():
        if "lora_B" in at:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval(), settings


@pytest.mark.quick
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_packed_rows_are_measured_right_whoever_measures(name: str, folders: dict[str, Path]) -> None:
    """Outside of the fast paths too: this model of Qwen's is not told by positions alone where rows begin."""
    model, _ = adapted(name, folders)
    known = profile(model, TASKS["causal_lm"], True, torch.float32)
    assert known.packs
    rows = [Encoded(tuple(range(start, start + 12)), (1.0,) * 12) for start in (3, 40, 90)]
    padded, packed = (
        evaluate(model, rows, Collator(TASKS["causal_lm"], None, Layout(0, packed=way), 100, torch.device("cpu")))
        for way in (False, True)
    )
    before = model.config._attn_implementation
    for one, other in zip(padded, packed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert model.config._attn_implementation == before


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "auto"), [("llava", "AutoModelForMultimodalLM"), ("qwen3_5", "AutoPeftModelForCausalLM")]
)
def test_the_card_s_code_loads_what_was_trained(name: str, auto: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    model, settings = adapted(name, folders)
    folder = tmp_path / "adapter"
    folder.mkdir()
    base = Base(str(folders[name]), folders[name], "folder")
    adapter.save(model, METHODS["lora"], settings, TASKS["causal_lm"], tiny.tokenizer(), base, folder)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert auto in code
    found: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(folder)), found)
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert torch.equal(adapter.outputs(TASK, found["model"], inputs), adapter.outputs(TASK, model, inputs))


@pytest.mark.quick
def test_the_card_of_a_whole_model_names_its_own_class(tmp_path: Path) -> None:
    card = adapter._card(Base("org/m", tmp_path, "hub", "c0ffee"), "model", "transformers", "AutoModelForMultimodalLM")
    assert 'model = AutoModelForMultimodalLM.from_pretrained("path/to/this/folder")' in card
    card = adapter._card(Base("org/m", tmp_path, "hub", "c0ffee"), "adapter", "peft", "AutoModelForMultimodalLM")
    assert 'AutoModelForMultimodalLM.from_pretrained("org/m", revision="c0ffee")' in card
