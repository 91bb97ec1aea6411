"""The training step's inner functions, written to do no needless work: each equals the plain path within rounding.

    linear     frozen linear layers that share an input, with their low-rank updates, as one product
    norm       RMSNorm
    gate       the gated unit of a feed-forward block: silu(g) * u
    attention  causal attention over rows packed end to end
    rotary     the same with rotary positions, between the products before and after it
    loss       cross-entropy from hidden states, never holding the logits of more than some tokens
    liger      the same by Liger's kernel, on CUDA

``install`` puts them into a model where they compute what its own modules compute, and takes them out again.
"""
