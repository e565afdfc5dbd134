"""A formula's syntax tree as MathML, which browsers draw without a script.

Products of elements are written ∘; products with a number per row or in all, and of matrices, by juxtaposition. Names
are the code's: x_hat is x̂, P_tilde is P̃, D_in has a subscript, eps is ε.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable
from typing import NamedTuple

GREEK = {"eps": "ε", "tau": "τ", "beta": "β", "theta": "θ", "eta": "η", "decay": "λ", "alpha": "α", "pi": "π"}
ACCENTS = {"hat": "ˆ", "tilde": "˜"}
NO_GRADIENTS = {"decay"}  # names that only begin with a d
SUM, PRODUCT, ATOM = 1, 2, 3  # how tightly parts hold together
TIMES, APPLY = '<mspace width="0.18em"/><mo>&#x2062;</mo>', "<mo>&#x2061;</mo>"
MINUS, DOT, CIRCLE = "<mo>−</mo>", "<mo>·</mo>", "<mo>∘</mo>"


class Part(NamedTuple):
    """kind: of a product, "∘", "@" or "·". ends_in_sum: what stands to its right would be read as summed, too."""

    mathml: str
    binding: int = ATOM
    kind: str = ""
    ends_in_sum: bool = False


# Whether an expression is one number, or one number per row: such a factor stands without a sign.
IsFactor = Callable[[ast.expr], bool]


def formula(sides: list[ast.expr], is_factor: IsFactor, display: bool = True, long: bool = False) -> str:
    """A <math> element. Of more than two sides, those behind the first stand one beneath the other; of a long formula,
    each side has a line of its own."""
    first, *others = (_row(render(side, is_factor)) for side in sides)
    if long:
        rows = [f"<mtd>{first}</mtd>", *(f"<mtd><mo>=</mo>{other}</mtd>" for other in others)]
    elif len(others) > 1:
        rows = [f"<mtd>{first}</mtd><mtd><mo>=</mo>{others[0]}</mtd>"]
        rows += [f"<mtd></mtd><mtd><mo>=</mo>{other}</mtd>" for other in others[1:]]
    else:
        rows = []
    body = "<mo>=</mo>".join([first, *others])
    if rows:
        kind = "long" if long else "steps"
        body = f'<mtable class="{kind}">{"".join(f"<mtr>{row}</mtr>" for row in rows)}</mtable>'
    block = ' display="block"' if display else ""
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML"{block}><mrow>{body}</mrow></math>'


def render(node: ast.expr, is_factor: IsFactor) -> Part:
    def inner(child: ast.expr) -> Part:
        return render(child, is_factor)

    match node:
        case ast.Constant(value=int() | float() as value):
            return Part(f"<mn>{value}</mn>")
        case ast.Name(id=name):
            return Part(symbol(name))
        case ast.UnaryOp(operand=operand):
            return Part(f"<mrow>{MINUS}{_bound(inner(operand), PRODUCT)}</mrow>", SUM)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            sign = "<mo>+</mo>" if isinstance(op, ast.Add) else MINUS
            last = inner(right)
            return Part(f"{inner(left).mathml}{sign}{_bound(last, PRODUCT)}", SUM, ends_in_sum=last.ends_in_sum)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return Part(f"<mfrac>{_row(inner(left))}{_row(inner(right))}</mfrac>")
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return Part(f"<msup>{_row(_atom(inner(left)))}<mrow>{_exponent(right, inner)}</mrow></msup>")
        case ast.BinOp(left=left, op=op, right=right):
            kind = "@" if isinstance(op, ast.MatMult) else "·" if is_factor(left) or is_factor(right) else "∘"
            return _product(kind, inner(left), inner(right))
        case ast.Attribute(value=value):
            return Part(f"<msup>{_row(_atom(inner(value)))}<mo>⊤</mo></msup>")
        case ast.Subscript(value=value, slice=index):
            return Part(f"<mrow>{_atom(inner(value)).mathml}<mo>[</mo>{inner(index).mathml}<mo>]</mo></mrow>")
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _call(name, arguments, inner)
    raise AssertionError(ast.dump(node))


def _call(name: str, arguments: list[ast.expr], inner: Callable[[ast.expr], Part]) -> Part:
    first = inner(arguments[0])
    if name == "sqrt":
        return Part(f"<msqrt>{_row(first)}</msqrt>")
    if name == "total":
        return Part(f"<mo>∑</mo>{_bound(first, PRODUCT)}", PRODUCT, ends_in_sum=True)
    if name == "sum":
        along = arguments[1]
        assert isinstance(along, ast.Name)
        return Part(
            f'<munder><mo movablelimits="false">∑</mo><mi>{along.id}</mi></munder>{_bound(first, PRODUCT)}',
            PRODUCT,
            ends_in_sum=True,
        )
    if name == "D":
        below = inner(arguments[1]).mathml
        if isinstance(arguments[0], ast.Name):
            return Part(f"<mfrac><mrow><mi>∂</mi>{first.mathml}</mrow><mrow><mi>∂</mi>{below}</mrow></mfrac>")
        slope = f"<mfrac><mi>∂</mi><mrow><mi>∂</mi>{below}</mrow></mfrac>"
        return Part(f"<mrow>{slope}{APPLY}{_in_parentheses(first.mathml)}</mrow>")
    if name == "δ" and isinstance(arguments[0], ast.Name):
        return Part(symbol(f"δ{arguments[0].id}"))
    listed = "<mo>,</mo>".join(inner(argument).mathml for argument in arguments)
    shown = {"sigmoid": "σ"}.get(name, name)
    return Part(f"<mrow><mi>{shown}</mi>{APPLY}{_in_parentheses(listed)}</mrow>")


def _product(kind: str, left: Part, right: Part) -> Part:
    """Parentheses wherever the order of a product of elements and one of matrices would be unclear."""
    mixed = {kind, left.kind} == {"∘", "@"}, {kind, right.kind} == {"∘", "@"}
    before = _bound(left, ATOM if mixed[0] or left.ends_in_sum else PRODUCT)
    after = _bound(right, ATOM if mixed[1] else PRODUCT)
    if kind == "∘":
        sign = CIRCLE
    else:
        sign = DOT if kind == "·" and re.match(r"(<mrow>)*(<mo [^>]*>\(|<mn>|<mfrac>)", after) else TIMES
    inside = {left.kind, right.kind} - {"", "·"}
    held = kind if kind != "·" or not inside else inside.pop()
    return Part(f"{before}{sign}{after}", PRODUCT, held, right.ends_in_sum)


def _bound(part: Part, binding: int) -> str:
    return part.mathml if part.binding >= binding else _in_parentheses(part.mathml)


def _in_parentheses(inside: str) -> str:
    """As high as what is inside, where that is higher than letters."""
    stretchy = "true" if re.search("<mfrac>|<munder>|<mo>∑", inside) else "false"
    opening, closing = (f'<mo form="{form}" stretchy="{stretchy}">' for form in ("prefix", "postfix"))
    return f"<mrow>{opening}(</mo>{inside}{closing})</mo></mrow>"


def _exponent(node: ast.expr, inner: Callable[[ast.expr], Part]) -> str:
    """A fraction on one line."""
    match node:
        case ast.BinOp(left=above, op=ast.Div(), right=below):
            return f"{inner(above).mathml}<mo>/</mo>{inner(below).mathml}"
    return inner(node).mathml


def _atom(part: Part) -> Part:
    return Part(_bound(part, ATOM))


def _row(part: Part) -> str:
    return f"<mrow>{part.mathml}</mrow>"


def symbol(name: str) -> str:
    """One name: δ and d before it, an accent above it, a subscript below it."""
    if name not in NO_GRADIENTS and (match := re.fullmatch(r"(δ|d_?)(.+)", name)):
        prefix, rest = match.groups()
        gap = '<mspace width="0.17em"/>' if len(rest.partition("_")[0]) > 1 else ""
        return f"<mrow><mi>{prefix[0]}</mi>{gap}{symbol(rest)}</mrow>"
    base, _, mark = name.partition("_")
    if mark in ACCENTS:
        return f'<mover accent="true">{symbol(base)}<mo stretchy="false">{ACCENTS[mark]}</mo></mover>'
    if len(base) > 1 and base not in GREEK:
        return f"<mi>{html.escape(name)}</mi>"
    letter = f"<mi>{html.escape(GREEK.get(base, base))}</mi>"
    if not mark:
        return letter
    below = f"<mn>{mark}</mn>" if mark.isdigit() else f"<mi>{GREEK.get(mark, mark)}</mi>"
    return f"<msub>{letter}{below}</msub>"
