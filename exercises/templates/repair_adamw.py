"""Repair AdamW.

    m ← β₁ m + (1 − β₁) s g         the gradients' moving mean
    v ← β₂ v + (1 − β₂) (s g)²      that of their squares
    θ ← θ − η (m̂ / (√v̂ + ε) + λ θ),    m̂ = m / (1 − β₁ᵗ),    v̂ = v / (1 − β₂ᵗ)

θ is parameter, g gradient, s scale, η lr, λ weight_decay, t the number of this update, counted from 1.
parameter, m and v are changed in place; nothing is returned.
"""


def adamw_update(parameter, gradient, m, v, t, scale, lr, betas, weight_decay, eps):
    beta1, beta2 = betas
    g = gradient * scale + weight_decay * parameter
    m.copy_(beta1 * m + (1 - beta1) * g)
    v.copy_(beta2 * v + (1 - beta2) * g**2)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    parameter.sub_(lr * m_hat / (v_hat.sqrt() + eps))
