"""Heads on feature maps, from their papers' formulas: CSRA, ML-Decoder and Query2Label's decoder.

timm has an ML-Decoder (`timm.layers.ml_decoder`), but its layer no longer works with torch's `TransformerDecoder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PERIOD = 10_000.0  # base of the position encoding, as in transformers


def residual_attention(
    num_features: int, num_classes: int, *, weight: float, temperatures: Sequence[float], dropout: float
) -> nn.Module:
    """Return CSRA (Zhu and Wu, ICCV 2021): feature maps [B, D, h, w] to logits [B, C].

    One 1x1 convolution without bias gives each head's score of each class at each position. A head's logit is the mean
    of a class's scores, plus lambda times their mean weighted by the softmax of temperature x score. Logits of all
    heads are added. The released code divides each class's weights by their norm, which is not done here.

    Args:
        num_features: D. num_classes: C.
        weight: lambda. With 0, a head is a linear one on mean-pooled features.
        temperatures: of each head; infinite for the maximum score.
        dropout: of whole channels, which equals that of pooled features.
    """
    return nn.Sequential(
        nn.Dropout2d(dropout),
        Places(),
        nn.Linear(num_features, len(temperatures) * num_classes, bias=False),
        AttendedScores(weight, temperatures),
    )


class Places(nn.Module):
    """Reshape feature maps [B, D, h, w] to features per position [B, h w, D]."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return a view if maps are channels-last."""
        return maps.flatten(2).mT


class AttendedScores(nn.Module):
    """Map scores of heads and classes at positions [..., h w, T C] to logits [..., C]; see `residual_attention`."""

    def __init__(self, weight: float, temperatures: Sequence[float]) -> None:
        """Store lambda and the temperature of each head."""
        super().__init__()
        self.weight, self.temperatures = weight, tuple(temperatures)

    def forward(self, scores: Tensor) -> Tensor:
        """Return logits."""
        heads = scores.unflatten(-1, (len(self.temperatures), -1)).unbind(-2)
        return torch.stack([self._of_head(*one) for one in zip(heads, self.temperatures, strict=True)]).sum(0)

    def _of_head(self, scores: Tensor, temperature: float) -> Tensor:
        mean = scores.mean(-2)
        if math.isinf(temperature):
            return mean + self.weight * scores.amax(-2)
        return mean + self.weight * ((temperature * scores).softmax(-2) * scores).sum(-2)


class LabelDecoder(nn.Module):
    """Queries that attend to the positions of a feature map [B, D, h, w], each for the logits of one or more classes.

    Each layer has self-attention of the queries (optional), attention to the positions, and a network with a hidden
    layer of four times the width, each followed by a residual connection and a normalisation, as in Vaswani et al.
    2017. A last layer gives each query the logits of its classes: ceil(C / Q) per query, in order. There is no dropout
    on attention weights, so that all randomness is per row of the batch.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        width: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        is_query2label: bool,
    ) -> None:
        """Initialise as both released codes do: queries from a normal distribution, trained only in Query2Label.

        Args:
            num_features: D. num_classes: C.
            width: of queries. num_queries: Q; at most C are used. num_layers, num_heads: of attention.
            dropout: of the output of each part of a layer, and of hidden units.
            is_query2label: trained queries with self-attention, and position encodings in the keys, as in Liu et al.
                2021; otherwise fixed queries without self-attention, and ReLU on the positions, as in Ridnik et al.
                2023.
        """
        super().__init__()
        num_queries = min(num_queries, num_classes)
        num_each = math.ceil(num_classes / num_queries)
        self.num_classes, self.is_query2label = num_classes, is_query2label
        self.project = nn.Linear(num_features, width)
        queries = torch.randn(num_queries, width)
        if is_query2label:
            self.queries = nn.Parameter(queries)
        else:
            self.register_buffer("queries", queries)
        self.layers = nn.ModuleList(
            DecoderLayer(width, num_heads, dropout, attends_to_itself=is_query2label) for _ in range(num_layers)
        )
        bound = width**-0.5  # torch's bound for a separate linear layer per query
        self.weight = nn.Parameter(torch.empty(num_queries, width, num_each).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits [B, C]."""
        values = self.project(maps.flatten(2).mT)
        if self.is_query2label:
            keys = values + position_encoding(maps.shape[2], maps.shape[3], values.shape[-1]).to(values)
        else:
            keys = values = F.relu(values)
        queries = self.queries.expand(maps.shape[0], -1, -1)  # len() would fix the size in an exported graph
        for layer in self.layers:
            queries = layer(queries, keys, values)
        grouped = torch.einsum("bqd,qdg->bqg", queries, self.weight)
        return grouped.flatten(1)[:, : self.num_classes] + self.bias


class DecoderLayer(nn.Module):
    """Queries [B, Q, W] optionally attend to each other, then to positions [B, P, W], followed by a network on each."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, attends_to_itself: bool) -> None:
        """Build the layer's parts."""
        super().__init__()
        self.itself = nn.MultiheadAttention(width, num_heads, batch_first=True) if attends_to_itself else None
        self.places = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 + attends_to_itself))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(2 + attends_to_itself))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the new queries."""
        norms, dropouts = iter(self.norms), iter(self.dropouts)
        if self.itself is not None:
            told, _ = self.itself(queries, queries, queries, need_weights=False)
            queries = next(norms)(queries + next(dropouts)(told))
        told, _ = self.places(queries, keys, values, need_weights=False)
        queries = next(norms)(queries + next(dropouts)(told))
        changed: Tensor = next(norms)(queries + next(dropouts)(self.network(queries)))
        return changed


def position_encoding(height: int, width: int, size: int) -> Tensor:
    """Return sines and cosines of the positions' rows, in half of the channels, and columns [h w, size], float32.

    As in DETR (Carion et al. 2020) and Query2Label, coordinates range from above 0 to 2 pi.
    """
    half = size // 2
    rates = _PERIOD ** -(2 * (torch.arange(half) // 2) / half)

    def encoded(number: int, channels: Tensor) -> Tensor:
        angles = torch.arange(1, number + 1)[:, None] / number * 2 * math.pi * channels
        return torch.where(torch.arange(len(channels)) % 2 == 0, angles.sin(), angles.cos())

    rows, columns = encoded(height, rates), encoded(width, rates)
    both = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return F.pad(torch.cat(both, dim=-1).flatten(0, 1), (0, size - 2 * half))
