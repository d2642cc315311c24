"""CNN-RNN: labels are written down one after another, each knowing those before it (Wang et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from plbench.api import Batch, Loss, Method, MethodParams, Progress, Task, tunable


class CNNRNN(Method):
    """`-sum_t log p(l_t | x, l_1 .. l_t-1)`: an LSTM reads the labels so far; image and LSTM together say the next one.

    `p = softmax(U (W_o o_t + W_x x))` over the C classes and "no more", where o_t is the LSTM's output after the labels
    so far and U the table of label embeddings that it also reads them from. In training the labels so far are the true
    ones, an image's known positives, frequent classes first, followed by "no more". In evaluation a beam keeps the
    `beam` likeliest sequences, which end with "no more" or after `max_labels`; a class's score is the highest
    probability that it is given at any step of any of them.

    The embeddings' and the LSTM's size and the dropout on the projected vector are the paper's. Ours: the paper decides
    which labels to name and has no score for the others, so that the rule above, known from its re-evaluations, is
    used; no sequence names a class twice; `max_labels` bounds training sequences, too. The head that a run asks for is
    not used. All that was not named is held against a class, whether it is unknown or verified absent.
    """

    name = "cnn-rnn"
    title = "CNN-RNN"
    paper = "Wang et al., CVPR 2016, arXiv 1604.04573"
    tags = frozenset({"single-positive", "system"})

    class Params(MethodParams):
        """The paper's sizes; width of the beam and longest sequence are ours."""

        embedding: int = Field(64, ge=1, description="dimension of a label's embedding")
        hidden: int = Field(512, ge=1, description="units of the LSTM")
        dropout: float = tunable(0.5, 0.0, 0.7, ge=0.0, lt=1.0, description="dropout of the projected vector")
        beam: int = Field(3, ge=1, description="sequences that the beam search keeps; ours")
        max_labels: int = Field(16, ge=1, description="longest sequence of labels; ours")

    def __init__(self, params: Any, task: Task) -> None:
        """Orders the classes by their known positives, the most frequent first; of equals those of lower index."""
        super().__init__(params, task)
        self.order = torch.from_numpy(np.argsort(-np.asarray(task.positives), kind="stable").copy())

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """The backbone and the recurrent net."""
        p, num_classes = self.params, self.task.num_classes
        length = min(p.max_labels, num_classes)
        first = next(module for module in make_head().modules() if isinstance(module, nn.Linear))
        sizes = {"num_features": first.in_features, "num_classes": num_classes}
        return LabelWriter(
            backbone, **sizes, embedding=p.embedding, hidden=p.hidden, dropout=p.dropout, beam=p.beam, max_labels=length
        )

    def sequences(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Known positives as sequences: class index or C for "no more" [B, T], and which entries count, bool [B, T].

        Args:
            labels: [B, C]. T is one more than the most positives of an image, of which only `max_labels` count.
        """
        order = self.order.to(labels.device)
        present = labels[:, order] > 0
        place = present.cumsum(dim=1)
        present = present & (place <= self.params.max_labels)
        number = present.sum(dim=1)
        length = int(number.max()) + 1 if len(labels) else 1
        sequence = torch.full((len(labels), length), labels.shape[1], device=labels.device)
        row, column = present.nonzero(as_tuple=True)
        sequence[row, place[row, column] - 1] = order[column]
        counts = torch.arange(length, device=labels.device) <= number[:, None]
        return sequence, counts

    def forward(self, model: nn.Module, batch: Batch, progress: Progress) -> Tensor:
        """Log-probabilities [B, 1 + T, C + 1]: first what scores are read from, then those of each step."""
        output: Tensor = model(batch.inputs, self.sequences(batch.labels)[0])
        return output

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy of every next label, summed over the sequence."""
        sequence, counts = self.sequences(batch.labels)
        log_probability = output[:, 1:].gather(-1, sequence[..., None]).squeeze(-1)
        return Loss.of_images(-torch.where(counts, log_probability, 0.0).sum(dim=-1))

    def scores(self, output: Tensor) -> Tensor:
        """A class's highest probability."""
        return output[:, 0, :-1].exp()


class LabelWriter(nn.Module):
    """Images and label sequences to log-probabilities of the next label, of which the last is "no more"."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        num_classes: int,
        embedding: int,
        hidden: int,
        dropout: float,
        beam: int,
        max_labels: int,
    ) -> None:
        """One embedding for each class, one for "no more", and one that starts a sequence."""
        super().__init__()
        self.backbone = backbone
        self.num_classes, self.beam, self.max_labels = num_classes, beam, max_labels
        self.embedding = nn.Embedding(num_classes + 2, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.of_output = nn.Linear(hidden, embedding, bias=False)
        self.of_image = nn.Linear(num_features, embedding, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(num_classes + 1))

    def forward(self, inputs: Tensor, sequence: Tensor) -> Tensor:
        """Log-probabilities [B, 1 + T, C + 1]: first, for scores, then of each step of the given sequences.

        Steps after "no more" have none: minus infinity.

        Args:
            inputs: of the backbone.
            sequence: [B, T] of class index or C; step t is told those before t.
        """
        image = self.of_image(self.backbone(inputs))
        start = torch.full_like(sequence[:, :1], self.num_classes + 1)
        told = self.embedding(torch.cat([start, sequence[:, :-1]], dim=1))
        # most images show few classes: steps that follow "no more" would be most of the work
        length = ((sequence != self.num_classes).sum(dim=1) + 1).clamp(max=sequence.shape[1])
        if len(told):  # torch packs no empty batch
            packed = pack_padded_sequence(told, length.cpu(), batch_first=True, enforce_sorted=False)
            output, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=sequence.shape[1])
        else:
            output, _ = self.lstm(told)
        vector = self._vector(output, image[:, None])  # of all steps: dropout draws for each image
        row, step = (torch.arange(sequence.shape[1], device=sequence.device) < length[:, None]).nonzero(as_tuple=True)
        log_p = self._next(vector[row, step])
        steps = log_p.new_full((*sequence.shape, self.num_classes + 1), -torch.inf).index_put((row, step), log_p)
        best = steps.detach().amax(dim=1) if self.training else self._search(image)
        return torch.cat([best[:, None], steps], dim=1)

    def _vector(self, output: Tensor, image: Tensor) -> Tensor:
        """The LSTM's output and the projected image in the space of label embeddings, [B, …, E]."""
        return self.dropout(self.of_output(output) + image)

    def _next(self, vector: Tensor) -> Tensor:
        """Log-probabilities [..., C + 1] of the next label."""
        logits = F.linear(vector, self.embedding.weight[: self.num_classes + 1], self.bias)
        return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def _search(self, image: Tensor) -> Tensor:
        """The highest log-probability [B, C + 1] that a label has at any step of the sequences in the beam."""
        num_images, width, no_more = len(image), self.beam, self.num_classes
        label = torch.full((num_images, width), no_more + 1, device=image.device)
        state: Any = None
        total = torch.full((num_images, width), -torch.inf, device=image.device)
        total[:, 0] = 0.0  # the sequences of the beam start as one
        named = torch.zeros(num_images, width, no_more + 1, dtype=torch.bool, device=image.device)
        best = torch.full((num_images, no_more + 1), -torch.inf, device=image.device)
        image = image[:, None].expand(-1, width, -1)
        for _ in range(self.max_labels):
            output, state = self.lstm(self.embedding(label).flatten(0, 1)[:, None], state)
            log_p = self._next(self._vector(output.squeeze(1).unflatten(0, (num_images, width)), image))
            goes_on = (total > -torch.inf) & (label != no_more)
            best = torch.maximum(best, log_p.masked_fill(~goes_on[..., None], -torch.inf).amax(dim=1))
            total, origin, label = self._extended(total, log_p.masked_fill(named, -torch.inf), goes_on)
            if not (label != no_more).any():
                break
            rows = (torch.arange(num_images, device=image.device)[:, None] * width + origin).flatten()
            state = tuple(part[:, rows] for part in state)
            named = named.flatten(0, 1)[rows].unflatten(0, (num_images, width))
            named = named.scatter(-1, label[..., None], True)
            named[..., no_more] = False
        return best

    def _extended(self, total: Tensor, log_p: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest sequences of one more label: log-probability, the sequence extended, its label; each [B, K].

        A sequence that has ended stays as it is, as if "no more" followed surely.
        """
        ended = torch.full_like(log_p, -torch.inf)
        ended[..., -1] = 0.0
        candidates = total[..., None] + torch.where(goes_on[..., None], log_p, ended)
        value, place = candidates.flatten(1).topk(self.beam, dim=1)
        return value, place // log_p.shape[-1], place % log_p.shape[-1]
