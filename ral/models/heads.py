"""Heads that use the whole feature map instead of its mean: ML-Decoder and CSRA."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Temperature of each attention head, by number of heads; infinity is the maximum (99 in the authors' code).
_TEMPERATURES = {
    1: (1.0,),
    2: (1.0, math.inf),
    4: (1.0, 2.0, 4.0, math.inf),
    6: (1.0, 2.0, 3.0, 4.0, 5.0, math.inf),
    8: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.inf),
}


class CSRA(nn.Module):
    """Class-specific residual attention (Zhu and Wu, ICCV 2021, arXiv 2108.02456).

    With scores s of a finding at all positions, a head of temperature T returns mean(s) + λ Σ softmax(T s) s;
    T = ∞ is mean(s) + λ max(s). Heads have separate weights and are summed. Unlike the authors' code, weights
    are not normalised, and each finding has a bias that can represent its prevalence.

    Args:
        features: channels of the backbone's feature map.
        findings: number of outputs.
        heads: 1, 2, 4, 6 or 8.
        lamb: λ.
    """

    def __init__(self, features: int, findings: int, heads: int, lamb: float) -> None:
        super().__init__()
        self.temperatures, self.lamb = _TEMPERATURES[heads], lamb
        self.weight = nn.Parameter(torch.empty(heads * findings, features))
        self.bias = nn.Parameter(torch.empty(findings))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the weights."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, positions: Tensor) -> Tensor:
        """Logits [batch, findings] from features [batch, positions, features]."""
        scores = functional.linear(positions, self.weight)
        logits: Tensor = self.bias
        for temperature, head in zip(
            self.temperatures, scores.chunk(len(self.temperatures), dim=2), strict=True
        ):
            if math.isinf(temperature):
                peak = head.amax(dim=1)
            else:
                peak = ((temperature * head).softmax(dim=1) * head).sum(dim=1)
            logits = logits + head.mean(dim=1) + self.lamb * peak
        return logits


class MLDecoder(nn.Module):
    """ML-Decoder (Ridnik et al., WACV 2023, arXiv 2111.12933) with fixed queries.

    One query per group of findings attends to the feature map, without self-attention among queries. Separate
    weights map each group's output to the logits of its findings. Attention heads (8), inner width (2048) and
    dropout (0.1) are the authors'.

    Args:
        features: channels of the backbone's feature map.
        findings: number of outputs.
        groups: maximum number of queries; capped at the number of findings.
        embedding: width of the decoder.
    """

    queries: Tensor

    def __init__(self, features: int, findings: int, groups: int, embedding: int) -> None:
        super().__init__()
        groups = min(groups, findings)
        self.findings = findings
        self.embed = nn.Linear(features, embedding)
        self.register_buffer("queries", torch.empty(groups, embedding))
        self.query_norm = nn.LayerNorm(embedding)
        self.attention = nn.MultiheadAttention(embedding, 8, dropout=0.1, batch_first=True)
        self.attention_norm = nn.LayerNorm(embedding)
        self.inner = nn.Linear(embedding, 2048)
        self.outer = nn.Linear(2048, embedding)
        self.inner_norm = nn.LayerNorm(embedding)
        self.dropout = nn.Dropout(0.1)
        self.weight = nn.Parameter(torch.empty(groups, embedding, math.ceil(findings / groups)))
        self.bias = nn.Parameter(torch.empty(findings))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise weights and queries."""
        for part in (
            self.embed,
            self.query_norm,
            self.attention_norm,
            self.inner,
            self.outer,
            self.inner_norm,
        ):
            part.reset_parameters()
        self.attention._reset_parameters()
        nn.init.normal_(self.queries)
        nn.init.normal_(self.weight, std=math.sqrt(2 / sum(self.weight.shape[1:])))
        nn.init.zeros_(self.bias)

    def forward(self, positions: Tensor) -> Tensor:
        """Logits [batch, findings] from features [batch, positions, features]."""
        memory = functional.relu(self.embed(positions))
        queries = self.queries.expand(memory.shape[0], -1, -1)  # len() would fix the batch size of an export
        # The authors' code drops self-attention but keeps its residual connection and norm.
        queries = self.query_norm(queries + self.dropout(queries))
        attended, _ = self.attention(queries, memory, memory, need_weights=False)
        queries = self.attention_norm(queries + self.dropout(attended))
        output = self.outer(self.dropout(functional.relu(self.inner(queries))))
        queries = self.inner_norm(queries + self.dropout(output))
        logits = torch.einsum("bge,gef->bgf", queries, self.weight).flatten(1)
        return logits[:, : self.findings] + self.bias
