"""Whether a model's tokens see those after them, which some tasks do not allow: tried, and never looked up by name."""

from __future__ import annotations

from typing import Any

from peftctl.errors import UsageError
from peftctl.model import skeleton
from peftctl.model.auto import auto_class
from peftctl.tasks import Task

LENGTH = 11  # tokens
SEED = 13
SHARE = 1e-3  # of the gradient: a causal model's is zero, and one that looks ahead has about a part in LENGTH
# A copy of more takes too long to fill with numbers; what is larger is tried when it is loaded.
LARGEST = 100_000_000
WORDS = 1024


def looks_ahead(model: Any) -> bool:
    """Whether what ``model`` says before the last token of a row depends on that token: by the gradient with respect
    to its vector, in which no rounding takes part. False where that cannot be had.
    """
    import torch

    embedding = model.get_input_embeddings()
    vectors: list[Any] = []

    def cut(module: Any, inputs: Any, output: Any) -> Any:
        vectors.append(output.detach().requires_grad_())
        return vectors[-1]

    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, len(embedding.weight), (1, LENGTH), generator=generator).to(embedding.weight.device)
    hook = embedding.register_forward_hook(cut)
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1].float()
        weights = torch.randn(logits.shape[-1], generator=generator).to(logits.device)
        (gradient,) = torch.autograd.grad((logits @ weights).sum(), vectors[:1])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # what a model's code makes of it is said when it is trained
        return False
    finally:
        hook.remove()
    sizes = gradient.float().nan_to_num().norm(dim=-1)[0]
    return bool(sizes[-1] > SHARE * sizes.sum())


def kind_looks_ahead(config: Any, task: Task) -> bool:
    """The same of a small copy of the model of ``config`` with random weights; False where none can be made."""
    import torch

    try:
        small = skeleton.cut(config)
        if getattr(small, "vocab_size", 0) > WORDS:
            small.vocab_size = max(WORDS, *(1 + number for number in _special(small)))
        if sum(parameter.numel() for parameter in skeleton.empty(small, task).parameters()) > LARGEST:
            return False
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            model = auto_class(task, small).from_config(small, dtype=torch.float32)
        return looks_ahead(model.requires_grad_(False).eval())
    except Exception:  # an architecture's code on a config cut short
        return False


def check(name: str, model: Any, task: Task, ahead: bool) -> None:
    """Raises UsageError where ``model``, called ``name``, looks ahead and ``task`` needs one that does not."""
    if not (task.causal and ahead):
        return
    trained = "of this kind a model that was trained to write text says `is_decoder: true` in its config.json"
    raise UsageError(
        f"model.name: {name} is a {type(model).__name__}, whose tokens see those after them, and {task.name} learns "
        "each token from those before it; allowed: a model with causal attention",
        trained if hasattr(model.config, "is_decoder") else "",
    )


def _special(config: Any) -> list[int]:
    """The ids of tokens that the config names, which must be in its vocabulary."""
    said = [value for key, value in config.to_dict().items() if key.endswith("_token_id")]
    return [number for number in said if isinstance(number, int)]
