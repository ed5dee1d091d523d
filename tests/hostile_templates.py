"""Chat templates that try to run code, never to end, to take all memory, to write without end, or to slip control tokens into what is trained."""

SAY = "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
"""What an honest template does."""


def grown(what: str, times: int = 60) -> str:
    """A value doubled again and again."""
    return (
        "{% set ns = namespace(x=" + what + ") %}{% for i in range(" + str(times) + ") %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
    )


def nested(name: str, times: int = 60) -> str:
    """A list of two of itself, so that whoever walks it takes 2 ** times steps."""
    return (
        "{% set "
        + name
        + " = namespace(x=[1]) %}{% for i in range("
        + str(times)
        + ") %}{% set "
        + name
        + ".x = ["
        + f"{name}.x, {name}.x"
        + "] %}{% endfor %}"
    )


LOOPS = "".join("{% for i" + str(n) + " in range(99999) %}" for n in range(4)) + "{% set x = 1 %}" + "{% endfor %}" * 4
RECURSION = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"

CODE = {
    "class of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "globals of raise_exception": "{{ raise_exception.__globals__['__builtins__']['open']('canary', 'w') }}",
    "globals of strftime_now": "{{ strftime_now.__globals__ }}",
    "import by lipsum": "{{ lipsum.__globals__['os'].popen('touch canary').read() }}",
    "builtins of self": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch canary') }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "names put together": "{{ ''['__cla' ~ 'ss__']['__mr' ~ 'o__'][1]['__subclasses__']() }}",
    "format of an attribute": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "format by a stored method": "{% set f = '{0.__class__.__base__}'.format %}{{ f(1) }}",
    "format by attr": "{{ ('{0.__class__.__base__}'|attr('format'))(1) }}",
    "map attribute": "{{ [cycler]|map(attribute='__init__.__globals__')|list }}",
    "groupby attribute": "{{ [cycler]|groupby('__init__.__globals__') }}",
    "sort attribute": "{{ [cycler, cycler]|sort(attribute='__init__') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch canary') }}",
    "extends": "{% extends '/etc/passwd' %}",
    "environment of a template": "{{ self._TemplateReference__context.environment }}",
    "frame of a generator": "{{ (messages|map(attribute='x')).gi_frame.f_back.f_globals }}",
    "namespace with a dunder": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__.__globals__ }}",
    "change of the messages": "{{ messages.append(messages) }}{{ messages.clear() }}",
    "mro of a message": "{{ messages[0].__class__.__mro__[-1].__subclasses__() }}",
    "joiner": "{{ joiner.__init__.__globals__.os }}",
}  # fmt: skip
"""Harmless or refused: no code runs, and nothing of the machine is written."""

TIME = {
    "loops in loops": LOOPS,
    "a loop as long as may be": "{% for i in range(10**9) %}{% endfor %}",
    "loops over characters": "{% set x = 'a' * 30000 %}{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}",
    "a macro that calls itself": RECURSION,
    "a macro that calls itself twice": TWICE,
    "a loop that calls itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a caller that calls itself": "{% macro f() %}{% call f() %}{% endcall %}{{ caller() }}{% endmacro %}{{ f() }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a power of powers": "{% set ns = namespace(x=9) %}{% for i in range(30) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 7 }}",
    "lists in lists compared": nested("a") + nested("b") + "{{ a.x == b.x }}",
    "lists in lists written": nested("a") + "{{ a.x }}",
    "lists in lists as JSON": nested("a") + "{{ a.x|tojson }}",
    "a search that goes back and forth": "{% set x = 'a' * 40000000 %}{{ x.rfind('b' + 'a' * 20000000) }}",
    "sorts without end": LOOPS.replace("{% set x = 1 %}", "{% set x = range(99999)|sort %}"),
    "joins without end": LOOPS.replace("{% set x = 1 %}", "{% set x = range(99999)|join %}"),
    "words wrapped": "{{ ('a ' * 20000000)|wordwrap(1) }}",
    "addresses looked for": "{{ ('www.' * 9000000)|urlize }}",
    "sums": "{{ [[1]] * 50000 | sum(start=[]) }}{% for i in range(99999) %}{{ ([[i] * 999] * 999)|sum(start=[])|length }}{% endfor %}",
    "batches": "{% for i in range(99999) %}{% set x = range(99999)|batch(1)|list %}{% endfor %}",
    "only where it is asked": "{% if add_generation_prompt %}" + LOOPS + "{% endif %}" + SAY,
    "only for an answer": SAY + "{% if messages|length > 1 %}" + LOOPS + "{% endif %}",
    "replacing back and forth": "{% set ns = namespace(x='ab' * 9999999) %}{% for i in range(99999) %}{% set ns.x = ns.x.replace('a', 'c').replace('c', 'a') %}{% endfor %}",
}  # fmt: skip
"""Ended by the limit, unless the template itself is refused before."""

MEMORY = {
    "ten billion characters": "{{ 'a' * 10**10 }}",
    "three hundred million characters": "{{ 'a' * (3 * 10**8) }}",
    "a text doubled": grown("'ab'"),
    "a list doubled": grown("[1]"),
    "a text padded": "{{ '%1000000000d' % 1 }}",
    "a text centred": "{{ 'a'|center(10**10) }}",
    "a text formatted wide": "{{ '{:>10000000000}'.format(1) }}",
    "a text that is indented": "{{ ('\\n' * 9999999)|indent(9999) }}",
    "a text filled up": "{{ 'a'.ljust(10**10) }}",
    "zeros in front": "{{ '1'.zfill(10**10) }}",
    "tabs that are widened": "{{ ('\\t' * 1000).expandtabs(10**9) }}",
    "a replacement": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "a join": "{{ (['a' * 10**6] * 10**6)|join }}",
    "lists of lists": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [range(99999)|list] %}{% endfor %}",
    "a dictionary": "{% set ns = namespace(x={}) %}{% for i in range(99999) %}{% set ns.x = dict(ns.x, **{i|string: 'a' * 10**6 ~ i}) %}{% endfor %}",
    "bytes": "{{ ('a' * 10**8).encode('utf-32') }}",
    "a date as wide as memory": "{{ strftime_now('%Y' * 10**8) }}",
    "lorem ipsum": "{{ lipsum(n=10**7) }}",
}  # fmt: skip

OUTPUT = {
    "twenty million characters": "{% for i in range(20) %}{{ 'a' * 10**6 }}{% endfor %}",
    "a hundred thousand lines a message": "{% for i in range(99999) %}{{ 'line ' * 100 }}{% endfor %}",
    "a message many times": "{% for i in range(99999) %}{% for m in messages %}{{ m.content * 99 }}{% endfor %}{% endfor %}",
}

EVERY = {
    f"{kind}: {name}": text
    for kind, cases in (("code", CODE), ("time", TIME), ("memory", MEMORY), ("output", OUTPUT))
    for name, text in cases.items()
}
