"""Evaluates the part of Go's text/template that our templates for Ollama use, as its documentation has it. `tests/engines` asks Go itself."""

import json
import re

_PIECE = re.compile(r"(\{\{-? .*? -?\}\})", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|:=|=|[^\s()",]+|,')


def render(template, messages):
    """What Ollama makes of a conversation with this template."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    data = {"System": system, "Messages": [{"Role": message["role"], "Content": message["content"]} for message in messages]}
    nodes, rest = _block(_pieces(template))
    assert not rest, rest
    out = []
    _run(nodes, data, [{"$": data}], out)
    return "".join(out)


def _pieces(template):
    """Texts and actions, with the white space beside {{- and -}} gone."""
    pieces = _PIECE.split(template)
    for number in range(1, len(pieces), 2):
        if pieces[number].startswith("{{-"):
            pieces[number - 1] = pieces[number - 1].rstrip()
        if pieces[number].endswith("-}}"):
            pieces[number + 1] = pieces[number + 1].lstrip()
    for number, piece in enumerate(pieces):
        if number % 2:
            action = piece.removeprefix("{{-").removeprefix("{{").removesuffix("}}").removesuffix("-").strip()
            yield "action", action
        elif piece:
            yield "text", piece


def _block(pieces):
    """Nodes up to an else or end that belongs to what is around them, and that one."""
    nodes = []
    for kind, piece in pieces:
        word = piece.split()[0] if kind == "action" else ""
        if word in ("if", "range"):
            nodes.append(_branch(word, piece.removeprefix(word), pieces))
        elif word in ("else", "end"):
            return nodes, piece
        else:
            nodes.append((kind, piece))
    return nodes, ""


def _branch(word, condition, pieces):
    inside, ended = _block(pieces)
    otherwise = []
    if ended.startswith("else if"):
        otherwise = [_branch("if", ended.removeprefix("else if"), pieces)]
    elif ended == "else":
        otherwise, ended = _block(pieces)
        assert ended == "end"
    return (word, condition, inside, otherwise)


def _run(nodes, dot, scopes, out):
    for node in nodes:
        match node:
            case ("text", text):
                out.append(text)
            case ("action", action) if found := re.match(r"(\$\w+) (:?=) (.*)", action):
                _assign(scopes, *found.groups(), dot)
            case ("action", action):
                out.append(str(_value(action, dot, scopes)))
            case ("if", condition, inside, otherwise):
                _run(inside if _value(condition, dot, scopes) else otherwise, dot, [*scopes, {}], out)
            case ("range", condition, inside, _):
                names, _, over = condition.partition(":=")
                number_name, value_name = (name.strip() for name in names.split(","))
                for number, value in enumerate(_value(over, dot, scopes)):
                    _run(inside, value, [*scopes, {number_name: number, value_name: value}], out)


def _assign(scopes, name, sign, expression, dot):
    value = _value(expression, dot, scopes)
    scope = scopes[-1] if sign == ":=" else next(scope for scope in reversed(scopes) if name in scope)
    scope[name] = value


def _value(expression, dot, scopes):
    words = _WORD.findall(expression)
    value, rest = _call(words, dot, scopes)
    assert not rest, rest
    return value


def _call(words, dot, scopes):
    """A function with its arguments, or one operand, up to a closing bracket."""
    values = []
    functions = {"eq": lambda a, b: a == b, "and": lambda *v: all(v) and v[-1], "len": len, "slice": lambda v, start: v[start:]}
    while words and words[0] != ")":
        word, words = words[0], words[1:]
        if word == "(":
            value, words = _call(words, dot, scopes)
            words = words[1:]
        elif word in functions:
            value = functions[word]
        else:
            value = _operand(word, dot, scopes)
        values.append(value)
    return (values[0](*values[1:]) if callable(values[0]) else values[0]), words


def _operand(word, dot, scopes):
    if word.startswith('"'):
        return json.loads(word)
    if word in ("true", "false") or word.isdigit():
        return json.loads(word)
    name, _, fields = word.partition(".")
    value = next(scope[name] for scope in reversed(scopes) if name in scope) if name else dot
    for field in filter(None, fields.split(".")):
        value = value[field]
    return value
