"""Text generation: the next token from those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.example import Conversation, Example, RowFault, Segment, Segments, Turn
from peftctl.objectives.cross_entropy import token_scores
from peftctl.tasks import texts
from peftctl.tasks.contract import Batch, EncodedExample, Layout
from peftctl.tasks.defaults import Defaults
from peftctl.tasks.overlong import fit
from peftctl.text import chat, tokens
from peftctl.text.tokens import Encoded


@dataclass(frozen=True)
class CausalLM(Defaults):
    name: str = "causal_lm"
    peft_type: str = "CAUSAL_LM"
    pipeline: str = "text-generation"
    accepts: tuple[type[Example], ...] = (Conversation, Segments)
    objective: str = "cross_entropy"
    causal: bool = True
    packs: bool = True
    generates: bool = True
    chats: bool = True
    ways: tuple[str, ...] = ("drop", "truncate_start", "truncate_end", "split")

    def probe(self, text: str) -> Segments:
        return Segments((Segment(text, 1.0),))

    def fit(self, row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
        return fit(row, longest, how, tokenizer.bos_token_id)

    def outputs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """Every logit of the rows, [rows, length, vocabulary], float32."""
        return model(**{**inputs, "use_cache": False}).logits.float()

    def prompt(self, asked: str | Sequence[Turn], tokenizer: Any) -> list[int]:
        """Ids of a plain prompt, or of turns with the template's generation prompt, as training saw them."""
        if isinstance(asked, str):
            return tokens.prompt_ids(asked, tokenizer, whole=True)
        return tokens.prompt_ids(chat.render(asked, tokenizer, generation_prompt=True), tokenizer, whole=False)

    def asked(self, example: Example, tokenizer: Any) -> tuple[list[int], str] | None:
        """What stands before the last answer; of plain text, before the first piece that is learned."""
        if isinstance(example, Conversation):
            last = max((at for at, turn in enumerate(example.turns) if turn.role == "assistant"), default=0)
            return (self.prompt(example.turns[:last], tokenizer), example.turns[last].content) if last else None
        assert isinstance(example, Segments)
        learned = next((at for at, piece in enumerate(example.pieces) if piece.weight), 0)
        before, answer = (
            "".join(piece.text for piece in part) for part in (example.pieces[:learned], example.pieces[learned:])
        )
        return (self.prompt(before, tokenizer), answer) if before else None

    def written(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, float]:
        return {"exact_match": texts.exact_match(pairs)}

    def model_class(self, config: Any = None) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        made: list[list[Segments] | RowFault] = []
        for example in examples:
            try:
                if isinstance(example, Conversation):
                    made.append(chat.segments(example, tokenizer, learn))
                else:
                    assert isinstance(example, Segments)
                    made.append([example])
            except RowFault as fault:
                made.append(fault)
        encoded = iter(tokens.encode_all([row for rows in made if isinstance(rows, list) for row in rows], tokenizer))
        return [_sound([next(encoded) for _ in rows]) if isinstance(rows, list) else rows for rows in made]

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """Rows padded on the right, or packed into one, and what is learned of them.

        ``inputs``   for the model's forward: input_ids [rows, length] and attention_mask, or where packed [1, length]
                     and position_ids, cu_seq_lens_q and _k (where rows begin), max_length_q and _k;
                     logits_to_keep [columns] where the model takes it
        ``columns``  [columns], those at which some row has a target in the column after
        ``at``       [n], the targets' places in the flattened grid [rows, columns] of logits
        ``targets``  [n], the learned ids; ``weights`` [n], float32; ``owners`` [n], the row of each
        ``weight``   the weight of all targets where they have one, else None
        ``rows``     how many; ``count``, the sum of the weights
        """
        import numpy as np

        lengths = [len(row) for row in rows]
        if layout.packed:
            filling = -sum(lengths) % layout.multiple
            lengths += [filling] if filling else []
            bounds = np.cumsum([0, *lengths], dtype=np.int32)
            ids = np.full((1, bounds[-1]), layout.pad_id)
            grid = np.zeros(ids.shape, np.float32)
            for row, start in zip(rows, bounds[:-1], strict=False):
                ids[0, start : start + len(row)] = row.ids
                grid[0, start : start + len(row)] = row.weights
            grid[0, bounds[:-1]] = 0.0
            inputs: dict[str, Any] = {
                "input_ids": ids,
                "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
                "cu_seq_lens_q": bounds,
                "cu_seq_lens_k": bounds,
                "max_length_q": max(lengths),
                "max_length_k": max(lengths),
            }
        else:
            ids = np.full((len(rows), max(lengths)), layout.pad_id)
            mask, grid = np.zeros_like(ids), np.zeros(ids.shape, np.float32)
            for index, row in enumerate(rows):
                ids[index, : len(row)] = row.ids
                mask[index, : len(row)] = 1
                grid[index, : len(row)] = row.weights
            grid[:, 0] = 0.0
            inputs = {"input_ids": ids, "attention_mask": mask}
        columns = np.flatnonzero(grid.any(axis=0)) - 1
        if layout.slices_logits:
            inputs["logits_to_keep"] = columns + layout.virtual
        weights = grid[:, columns + 1].flatten()
        at = np.flatnonzero(weights)
        owners = at // max(len(columns), 1)
        if layout.packed:
            owners = np.searchsorted(bounds[1:], columns[at] + 1, side="right")
        weights = weights[at]
        return {
            "inputs": {**inputs, "use_cache": False},
            "columns": columns + layout.virtual,
            "at": at,
            "targets": ids[:, columns + 1].flatten()[at],
            "weights": weights,
            "owners": owners,
            "rows": len(rows),
            "weight": float(weights[0]) if len(weights) and (weights == weights[0]).all() else None,
            "count": float(weights.sum(dtype=np.float64)),
            "head": layout.head,
        }

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[float]]:
        """For each row the loss and the rightly guessed learned tokens, both by weight, and the weight."""
        import torch

        losses, right = token_scores(model, batch)
        weights = batch["weights"].double()
        of_tokens = {"loss": losses.double() * weights, "right": right * weights, "count": weights}
        return {
            name: torch.zeros(batch["rows"], dtype=torch.float64, device=values.device)
            .index_add_(0, batch["owners"], values)
            .tolist()
            for name, values in of_tokens.items()
        }

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return texts.of_tokens(sums)


def _sound(rows: list[Encoded | RowFault]) -> EncodedExample:
    """An example's rows, or the fault of the first that has one: part of an example is not learned by itself."""
    sound = [row for row in rows if isinstance(row, Encoded)]
    return sound if len(sound) == len(rows) else next(row for row in rows if isinstance(row, RowFault))


TASK = CausalLM()
