"""GGUF bases: what is no GGUF is refused, and the real one becomes a plain folder, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from peftctl.errors import UsageError
from peftctl.model import gguf, gguf_whole
from tests import jobs, tiny

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nonsense", "does not begin with GGUF"),
        (b"", "does not begin with GGUF"),
        (b"GGUF\x03\0\0", "can(not)? be read"),
    ],
)
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        gguf.plain_folder(path, lambda _: None)


def small(path: Path, *, alignment: int = 32) -> Path:
    """A GGUF of two tensors with texts, lists and numbers in its head, by the gguf package."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_token_list(["a", "bc", "def"])
    writer.add_array("llama.sizes", [1, 2, 3])
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.add_tensor("blk.0.w", np.zeros((5, 18), np.uint8), raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.quick
@pytest.mark.parametrize("alignment", [32, 4096])
def test_a_whole_file_ends_after_its_last_tensor(tmp_path: Path, alignment: int) -> None:
    path = small(tmp_path / "m.gguf", alignment=alignment)
    gguf_whole.check_whole(path)
    size = path.stat().st_size
    from gguf import GGUFReader

    ends = {int(tensor.data_offset) + int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    content = path.read_bytes()[: max(ends)]
    path.write_bytes(content)  # the writer fills the end up
    gguf_whole.check_whole(path)
    path.write_bytes(content[:-1])
    with pytest.raises(
        UsageError, match=rf"is not whole \({len(content) - 1:,} bytes, where its tensors need {max(ends):,}"
    ):
        gguf_whole.check_whole(path)
    assert size >= max(ends)


@pytest.mark.quick
def test_a_file_cut_short_anywhere_is_said_to_be(tmp_path: Path) -> None:
    content = small(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for end in range(4, len(content) - 64, 37):
        path.write_bytes(content[:end])
        with pytest.raises(UsageError, match=r"is not whole|is cut short") as refused:
            gguf.plain_folder(path, lambda _: None)
        assert refused.value.hint == "fetch or copy it again"


@pytest.mark.quick
def test_a_head_that_says_what_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    content = small(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "odd.gguf"
    for at, value in ((4, 9), (8, 2**60), (16, 2**60), (24, 2**62)):  # version, tensors, settings, a text's length
        path.write_bytes(
            content[:at] + value.to_bytes(8 if at > 4 else 4, "little") + content[at + (8 if at > 4 else 4) :]
        )
        with pytest.raises(UsageError, match="no GGUF file that can be read"):
            gguf.plain_folder(path, lambda _: None)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTCTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        notes: list[str] = []
        folder = gguf.plain_folder(MODEL, notes.append)
        assert len(notes) == 1
        assert gguf.plain_folder(MODEL, notes.append) == folder
        assert len(notes) == 1  # the second time there is nothing to do
        return folder


@pytest.mark.slow
def test_the_converted_folder_holds_the_file_dequantised(converted: Path) -> None:
    """The oracle reads the GGUF by the gguf package, without transformers."""
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.dtype == torch.float32
    tensors = {tensor.name: tensor for tensor in GGUFReader(MODEL).tensors}
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.7.mlp.down_proj.weight": "blk.7.ffn_down.weight",
        "model.layers.29.input_layernorm.weight": "blk.29.attn_norm.weight",
    }.items():
        tensor = tensors[theirs]
        expected = dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(model.state_dict()[ours].numpy(), expected)
    settings = json.loads((converted / "tokenizer_config.json").read_text())
    assert not set(gguf.STRAY_KEYS) & settings.keys()
    assert AutoTokenizer.from_pretrained(converted)("hello").input_ids == [28120]


@pytest.mark.slow
def test_the_real_model_trains_from_its_gguf_and_plain_peft_loads_the_adapter(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM

    monkeypatch.setenv("PEFTCTL_CACHE", str(converted.parents[1]))
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(12))
    run, events = jobs.train(
        tmp_path, MODEL, model={"dtype": "auto"}, train={"epochs": 4, "batch_size": 12, "learning_rate": 1e-3}
    )
    seen = jobs.losses(events)
    assert seen[-1] < 0.5 * seen[0]
    facts = jobs.manifest(run)
    assert facts["base"]["origin"] == "gguf"
    assert facts["trainable_parameters"] == 4 * 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert facts["verified"]["reload"]["max_difference"] <= facts["verified"]["reload"]["tolerance"]
    plain = AutoPeftModelForCausalLM.from_pretrained(run / "adapter")
    assert plain.peft_config["default"].base_model_name_or_path == str(converted)
