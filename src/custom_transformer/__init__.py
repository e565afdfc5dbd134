"""A decoder-only transformer trained by hand-derived backpropagation."""

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.wrapper import CustomTransformerWrapper

__all__ = ["CustomTransformer", "CustomTransformerConfig", "CustomTransformerWrapper"]
