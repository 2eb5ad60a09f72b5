"""Symmetry-aware cross-attention (SACA): every place looks at the whole of the mirrored counterpart.

Shapes: B batch, N tokens, C channels; features are `(B, C, X, Y, Z)`.
"""

from monai.networks.blocks import CrossAttentionBlock, MLPBlock, SABlock
from torch import Tensor, nn


class SymmetryAwareCrossAttention(nn.Module):
    """Join the features of an image with those of its mirrored counterpart (SACA).

    One post-norm transformer block: self-attention on `f`, cross-attention from `f` (queries) to `f~` (keys, values),
    feed-forward; each with a residual and a LayerNorm:

        SACA(f, f~) = softmax(Q K~^T / sqrt(D)) V~,    Q = f Wq,  K~ = f~ Wk,  V~ = f~ Wv

    The last layer of each of the three branches starts at zero. Since the encoder's features are layer-normalised
    already, the block starts as the identity, and what the cross-attention adds is learned: a network with a fresh SACA
    is no worse than one without. There is no position encoding. The attention is not masked: every token sees all
    tokens of the counterpart.

    Args:
        hidden_size: channels C of the features; 16 times the encoder's feature size.
        num_heads: attention heads, must divide `hidden_size`.
        mlp_ratio: width of the feed-forward layer, as a multiple of `hidden_size`.
        dropout_rate: after each attention and in the feed-forward layer.

    Shape:
        - features, mirrored: `(B, C, X, Y, Z)`
        - output: `(B, C, X, Y, Z)`

    References:
        Ma et al., Symmetry Awareness Encoded Deep Learning Framework for Brain Imaging Analysis, MICCAI 2024, section
        2.
    """

    def __init__(
        self, hidden_size: int, num_heads: int = 12, mlp_ratio: float = 4.0, dropout_rate: float = 0.1
    ) -> None:
        super().__init__()
        # Not MONAI's flash attention: its dropout stays on in eval mode, and the bottleneck has few tokens.
        self.attention = SABlock(hidden_size, num_heads, dropout_rate, qkv_bias=True)
        self.cross_attention = CrossAttentionBlock(hidden_size, num_heads, dropout_rate, qkv_bias=True)
        self.mlp = MLPBlock(hidden_size, int(mlp_ratio * hidden_size), dropout_rate)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(hidden_size, eps=1e-12) for _ in range(3))
        for last in (self.attention.out_proj, self.cross_attention.out_proj, self.mlp.linear2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, mirrored: Tensor) -> Tensor:
        tokens, context = (f.flatten(2).transpose(1, 2) for f in (features, mirrored))  # B N C
        tokens = self.norm1(tokens + self.attention(tokens))
        tokens = self.norm2(tokens + self.cross_attention(tokens, context))
        tokens = self.norm3(tokens + self.mlp(tokens))
        return tokens.transpose(1, 2).reshape(features.shape)
