"""Writes chat/jinja.json: templates and what jinja2 renders them as in the sandbox of transformers: expressions of every filter, test, operator and
method, statements, white space, and random expressions from seeds.

chat/jinja.json: now, variables, messages, cases[]: {t: template, out: its text} or {t, error: the class of what is raised}
"""
import datetime
import itertools
import random
import re

import transformers.utils.chat_template_utils as ctu

from common import arguments, provenance, save_records

NOW = datetime.datetime(2026, 3, 5, 9, 7, 3, 250000)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


ctu.datetime = Clock

VARIABLES = {
    "s": "Hello, World",
    "e": "",
    "w": "  two  words\t",
    "m": "first\nsecond line\n\nfourth\r\nfifth",
    "u": "Straße naïve 中文 😀 ΑΣ ǆ",
    "q": "it's \"q\" <b>&amp; \\ \u00a0\u200b\x07",
    "p": "well-known well--known state-of-the-art",
    "num": "42",
    "n": 7,
    "z": 0,
    "neg": -7,
    "big": 12345678901234567890,
    "f": 2.5,
    "g": -0.125,
    "h": 1e-07,
    "k": 1e16,
    "t": True,
    "no": False,
    "none": None,
    "l": [3, 1, 2],
    "ls": ["b", "A", "c", "a"],
    "le": [],
    "lm": [1, "1", 1.0, True, None],
    "ll": [[1, 2], [3]],
    "lo": [{"k": "x", "v": 2, "o": {"i": 1}}, {"k": "Y", "v": 1}, {"k": "x", "v": 3, "o": {"i": None}}],
    "d": {"b": 1, "a": [1, 2], "c": None, "B": "x"},
    "di": {"items": 1, "get": 2, "keys": 3},
    "dn": {"x": {"y": {"z": "deep"}}, "1": "one"},
}


def words(text):
    """The words of a text, in which quotes may hold spaces."""
    return re.findall(r"(?:'[^']*'|\S)+", text)


LITERALS = ["(1, 'a', 2.0)", "()", "('x',)", "range(4)", "{1: 'i', 2.5: 'f', true: 'overwrites', none: 'n', (1, 2): 't'}", "missing", "d.missing", "'%s'", "1e3", "0x1f", "d.items()", "('<b>' | safe)"]
NAMES = list(VARIABLES) + LITERALS

FILTERS = words("""abs attr('k') attr('upper') batch(2) batch(2,'-') capitalize center center(9) count d d('z') d('z',true) default(none) dictsort dictsort(true)
dictsort(by='value') dictsort(false,'value',true) dictsort(reverse=true) e escape filesizeformat filesizeformat(true) first float float(9) forceescape format('a') format(n) format
groupby('k') groupby('v') groupby('o.i',default=0) groupby(attribute='k',case_sensitive=true) indent indent(2) indent(2,true) indent(width='>>',first=true,blank=true) int int(5) int(0,16) int(default=3,base=2) join join(', ')
join(d='|',attribute='k') join(attribute='o.i') last length list lower items map('upper') map('int') map(attribute='k') map(attribute='o.i',default='?') map('default','x') map('length') map('join','-')
min min(attribute='v') max max(true) max(attribute='k') pprint reject('odd') reject('none') rejectattr('o') rejectattr('v','gt',1) replace('l','L') replace('l','',1) replace('','-') replace(1,2) reverse round round(1)
round(2,'floor') round(1,'ceil') round(-1) safe select select('odd') select('string') select('gt',1) select('in',[1,2]) selectattr('o') selectattr('k','equalto','x') selectattr('o.i','none') selectattr('v','ge',2)
slice(2) slice(2,'-') sort sort(true) sort(case_sensitive=true) sort(attribute='v') sort(attribute='k,v',reverse=true) string striptags sum sum(start=1) sum('v') sum(attribute='v',start=10) sum(start=[]) title trim trim(' H') tojson
tojson(indent=2) tojson(indent=1,sort_keys=true) tojson(true) tojson(ensure_ascii=true,separators=(',',':')) tojson(separators=(' , ',' : '),indent=0) tojson(indent='--') truncate truncate(5) truncate(5,true) truncate(9,true,'..',0) truncate(8,false,'',0) truncate(1)
unique unique(true) unique(attribute='k') upper urlencode wordcount wordwrap(6) wordwrap(5,false) wordwrap(4,true,'|') wordwrap(9,true,none,false) xmlattr xmlattr(false) nosuchfilter upper(1) join(1,2,3) d(default=2)""")
AFTER = ["", " | list", " | first", " | length", " | join(';')"]

TESTS = words("""boolean callable defined divisibleby(2) divisibleby(0) divisibleby(2.5) escaped even false float in([1,'a',none]) in('Hello') integer iterable lower mapping none number odd sameas(none) sameas(7) sameas(true) sequence string
true undefined upper eq(7) equalto('') ==7 ne(7) gt(1) greaterthan('a') ge(7) lt(3) lessthan(none) le(2.5) filter test nosuchtest""")

STRING_METHODS = words("""capitalize() casefold() center(20) center(21,'*') count('l') count('') count('l',3) count('o',0,-1) encode() endswith('ld') endswith(('x','d')) endswith('l',0,4) expandtabs() expandtabs(4) find('o') find('o',5) find('zz') find('',3) find('l',-3)
index('o') index('zz') isalnum() isalpha() isascii() isdecimal() isdigit() isidentifier() islower() isnumeric() isprintable() isspace() istitle() isupper() join(ls) join('ab') join(l) ljust(15) ljust(15,'.') lower() lstrip() lstrip('He') partition(', ') partition('zz') partition('')
removeprefix('He') removesuffix('ld') removesuffix('') replace('l','L') replace('l','L',1) replace('','.') replace('','.',2) replace('l','L',-1) replace('l') rfind('o') rfind('zz') rindex('l') rjust(15) rjust(15,'ab') rpartition(', ') rpartition('zz') rsplit() rsplit('o',1) rsplit(none,1) rsplit(maxsplit=1) rstrip()
rstrip('dl') split() split(',') split('l',1) split(none,1) split(sep='o',maxsplit=1) split('') split(' ',-1) splitlines() splitlines(true) splitlines(keepends=true) startswith('He') startswith(('x','H')) startswith('l',2) startswith('') strip() strip('Hd') strip(none) strip(chars='H') swapcase() title() translate({108:'L',111:none}) upper() zfill(20) zfill(2)
format() format(1) format_map({}) nosuch() nosuch upper is_safe __class__ __len__() _private maketrans""")
LIST_METHODS = "copy() count(1) index(1) index(9) index(2,1) append(4) pop() sort() reverse() extend([1]) insert(0,1) clear() remove(1) length nosuch append".split()
DICT_METHODS = "copy() get('a') get('zz') get('zz',0) get() get(key='a') items() keys() values() pop('a') setdefault('q',1) update({}) clear() popitem() fromkeys('ab') fromkeys('ab',1) a missing items get keys.x".split()
NUMBER_METHODS = "bit_length() bit_count() real imag numerator denominator conjugate() is_integer() as_integer_ratio() nosuch __add__(1) hex".split()

OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "~"]
OPERANDS = ["7", "-7", "0", "2.5", "-0.5", "1e300", "12345678901234567890", "true", "none", "'ab'", "'%s'", "''", "[1]", "(1,)", "{'a': 1}", "missing", "range(2)", "('<' | e)", "d.keys()"]

FORMATS = ["{}|{}", "{1}{0}", "{0}{}", "{:>5}|{:<5}", "{:^7}", "{:*^9}", "{:05d}", "{:+d}", "{: d}", "{:,}", "{:_}", "{:x}", "{:#x}", "{:#b}", "{:o}", "{:c}", "{:.2f}", "{:8.3f}", "{:e}", "{:.1e}", "{:g}", "{:.3g}", "{:G}", "{:%}", "{:.1%}", "{!r}", "{!s:>4}", "{!a}", "{:{}}", "{{}}", "{", "}", "{0[a]}", "{0.real}", "{0[0]}", "{:s}", "{:.2}", "{:08.2f}", "{:=+6d}", "{:n}", "{:#.0f}", "{:010,}", "{x}", "{:q}", "{:<08}", "{:,.2f}", "{:#g}"]
PERCENTS = ["%s", "%r", "%d", "%i", "%5d|", "%-5d|", "%05d", "%+d", "% d", "%x", "%X", "%#x", "%o", "%e", "%.2e", "%f", "%.1f", "%g", "%.3g", "%G", "%c", "%%", "%s %s", "%(a)s", "%(a)d%%", "%5s|", "%-5s|", "%.2s", "%*d", "%a", "%z", "%", "%.0f", "%#.0f", "%08.2f", "%.3d", "%5%"]
FORMAT_ARGUMENTS = ["7", "-7", "2.5", "-0.0", "1234567.891", "'ab'", "true", "none", "[1]", "d", "12345678901234567890", "1e-7", "1e16", "'ñ'", "missing", "0.5", "65"]

SLICES = ["[0]", "[-1]", "[9]", "[-9]", "[1:]", "[:2]", "[:-1]", "[::-1]", "[::2]", "[5:1:-2]", "[-2:]", "[:]", "[::0]", "[1:none]", "['a']", "['b':]", "[none]", "[true]", "[1.0]", "[1,2]", "['x']['y'].z", ".0", ".a.b", "['items']", ".items", "[missing]", "['upper']", "['__class__']"]
SLICED = ["s", "u", "l", "ls", "le", "(1, 'a', 2.0)", "range(9)", "range(9, 0, -2)", "d", "di", "dn", "n", "none", "missing", "d.keys()"]

STATEMENTS = [
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for x in ls %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.nosuch is defined }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}{% for x in l %}{{ loop }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle() }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in d | dictsort %}{{ k }}{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for a, b in l %}{{ a }}{% endfor %}",
    "{% for x in missing %}x{% else %}none{% endfor %}{% for x in d.missing %}x{% endfor %}|{% for x in none %}x{% endfor %}",
    "{% for x in n %}x{% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% else %}none{% endfor %}",
    "{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l | select('odd') %}{{ x }}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "{% for x in l %}{% if loop.first %}{% continue %}{% endif %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% endfor %}.",
    "{% for x in l %}{% for y in ls %}{% if y == 'A' %}{% break %}{% endif %}{{ x }}{{ y }}{% endfor %}{% endfor %}",
    "{% for x in l %}{% set y %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% endset %}{{ y }}{% endfor %}{{ y is defined }}",
    "{% break %}",
    "{% macro a() %}{% break %}{% endmacro %}{% for x in l %}{{ a() }}{% endfor %}",
    "{% set x = 1 %}{% for y in l %}{% set x = y %}{{ x }}{% endfor %}{{ x }}",
    "{% if true %}{% set x = 5 %}{% endif %}{{ x }}",
    "{% set ns = namespace(a=1, b='x') %}{% for y in l %}{% set ns.a = ns.a + y %}{% endfor %}{{ ns.a }}{{ ns['b'] }}{{ ns.c is defined }}{{ ns }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{% set ns.a, ns.b = 3, 4 %}{{ ns.a }}{{ ns.b }}{% set ns.t %}text{% endset %}{{ ns.t }}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set d.x = 1 %}",
    "{% set missing.x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a = 1, %}{{ a }}{% set (a, b) = 'xy' %}{{ a }}{{ b }}{% set a, b = 1 %}",
    "{% set a, b = [1, 2, 3] %}",
    "{% set true = 1 %}",
    "{% set x %}a{{ n }}{% endset %}{{ x }}{{ x | length }}{% set x | upper | replace('A', 'b') %}a{{ n }}{% endset %}{{ x }}",
    "{% set x = 1 %}{% set y %}{% set x = 2 %}{{ x }}{% endset %}{{ x }}{{ y }}",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% set a = 2 %}{{ a }}{% endwith %}{{ a is defined }}",
    "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}",
    "{% with %}{% set q = 1 %}{% endwith %}{{ q is defined }}",
    "{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(c=5, a=4) }}{{ m() }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(q=2) }}",
    "{% macro m(a) %}{{ a is defined }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m() }}{{ m(1, 2, 3, x=4) }}{{ m(*l) }}{{ m(**{'a': 5, 'y': 6}) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}inner {{ n }}{% endcall %}",
    "{% macro m(a) %}[{{ caller(a, b=2) }}]{% endmacro %}{% call(x, b) m(1) %}{{ x }}{{ b }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro m(a, b=1) %}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 3 %}{{ m() }}",
    "{% macro fib(i) %}{{ i if i < 2 else fib(i - 1) ~ fib(i - 2) }}{% endmacro %}{{ fib(4) }}",
    "{% macro m() %}  text  {% endmacro %}{{ m() | trim | upper }}{{ m() ~ 'x' }}{{ m() + 'y' }}",
    "{% macro m(a, a) %}{% endmacro %}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% filter upper | replace('A', 'b') %}a {{ s }}{% endfilter %}{% filter indent(2) %}x\ny{% endfilter %}",
    "{% block title %}t{{ n }}{% endblock %}{{ self.title() }}",
    "{% for x in l %}{% block inner scoped %}{{ x }}{% endblock %}{% endfor %}",
    "{% for x in l %}{% block inner %}{{ x }}{% endblock %}{% endfor %}",
    "{% block a %}{% endblock %}{% block a %}{% endblock %}",
    "{% print 1, 'x' %}",
    "{% for x in [[1, [2, [3]]], [4]] recursive %}{{ loop.depth }}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    "{% for x in l %}{{ loop(l) }}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.current }}",
    "{% set j = joiner('; ') %}{{ j() }}a{{ j() }}b{{ j() }}c{% set k = joiner() %}{{ k() }}{{ k() }}",
    "{% generation %}a{{ n }}{% set q = 1 %}{% endgeneration %}{{ q is defined }}",
    "{% if n == 7 and not e %}yes{% elif n %}no{% else %}never{% endif %}",
    "{% if missing %}x{% endif %}{% if missing is defined and missing.a.b %}x{% else %}y{% endif %}",
    "{% if missing.a %}x{% endif %}",
    "{% if 1, %}tuple{% endif %}",
    "{%- if true -%}  a  {%- endif -%}  b",
    "  {% if true %}\n  a\n  {% endif %}\n  b\n",
    "  {%+ if true +%}\n  a\n  {%- endif %}\n\n  b\n\n",
    "{{ 1 }}\n{{ 2 }}\n",
    "x  {{- 1 -}}  \n y {{ 2 }} \n",
    "a\n  {# comment #}\nb {#- c -#} \n d {#+ e +#}\nf",
    "{% raw %}{{ x }}{% if %}{% endraw %}|\n  {% raw -%}  a  {%- endraw %}\nb",
    "{# unfinished",
    "{% raw %}x",
    "{% if true %}x",
    "{% endif %}",
    "{% for x in l %}{% endif %}{% endfor %}",
    "{% unknown %}",
    "{{ }}",
    "{{ 'a' 'b' \"c\" }}",
    "{{ '\\n\\t\\'\\\"\\\\\\x41\\u00e9\\U0001F600\\101\\q\\a' }}",
    "{{ \"it's\" }}{{ 'say \"x\"' }}",
    "line\r\nother\rthird\n",
    "{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1, 2,) }}{{ [] }}{{ {} }}{{ () }}",
    "{{ 1_000 }}{{ 0b101 }}{{ 0o17 }}{{ 0xFF }}{{ 1.5e3 }}{{ 1e-3 }}{{ 2.0 }}{{ 1_0.5_0 }}",
    "{{ 007 }}",
    "{{ .5 }}",
    "{{ 1. }}",
    "{{ a.1b }}",
    "{{ true }}{{ True }}{{ false }}{{ False }}{{ none }}{{ None }}",
    "{{ 1 if true }}{{ 1 if false }}{{ (1 if false) is defined }}{{ 1 if false else 2 if false else 3 }}",
    "{{ not 1 == 2 }}{{ not true and false }}{{ 1 + 2 * 3 ** 2 }}{{ (1 + 2) * 3 }}{{ -2 ** 2 }}{{ 2 ** 3 ** 2 }}{{ -1 | abs }}{{ 10 - 3 - 2 }}",
    "{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1.0 == true }}{{ 3 > 2 >= 2 != 1 }}{{ 1 in [1] == true }}",
    "{{ 'a' ~ 1 + 2 ~ 'b' }}{{ 1 ~ 2 * 3 }}{{ 'a' ~ none ~ true ~ 1.0 ~ [1] ~ missing }}",
    "{{ n is odd and n is not even }}{{ n is divisibleby 7 }}{{ 'x' is in 'xyz' }}{{ n is not none }}{{ 1 is eq 1 }}{{ l is sameas l }}{{ d.a is defined and d.a }}",
    "{{ n is odd is even }}",
    "{{ x is defined if x is defined else 'n' }}",
    "{{ range(3) }}{{ range(1, 9, 3) | list }}{{ range(5, 0, -2) | list }}{{ range(0) | list }}{{ range(2) | length }}{{ 1 in range(3) }}",
    "{{ range(100001) }}", "{{ range(100000) | length }}", "{{ range(1.5) }}", "{{ range('3') }}", "{{ range() }}", "{{ range(1, 2, 0) }}", "{{ range(9)[2:8:3] }}{{ range(9)[::-1] }}",
    "{{ dict(a=1, b='x') }}{{ dict([('k', 1), ['l', 2]]) }}{{ dict({'a': 1}, c=2) }}{{ dict() }}{{ dict.fromkeys(['a', 'b'], 0) }}", "{{ dict(1) }}", "{{ dict([1]) }}",
    "{{ raise_exception('stop') }}", "{{ raise_exception() }}", "{% if false %}{{ raise_exception('x') }}{% endif %}ok",
    "{% if false %}{{ 1 | nosuch }}{% endif %}ok", "{% if true %}{{ 1 | nosuch }}{% endif %}", "{{ (1 | nosuch) if false else 2 }}", "{% for x in [] %}{{ 1 | nosuch }}{% endfor %}ok", "{% if false %}{{ 1 is nosuch }}{% endif %}ok",
    "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}", "{{ strftime_now('%d %b %Y|%A %B %-d|%a %y %j %U %W %w %p %I|%e %%|%F %T|%f') }}", "{{ strftime_now('%c|%x|%X|%D|%G-%V-%u|%h|%C|%n|%t|%R') }}",
    "{{ messages | length }}{{ messages[-1].role }}{{ messages[0]['content'] }}{{ (messages | last).content }}{{ messages | map(attribute='role') | join(',') }}",
    "{{ messages[0].missing is defined }}{{ messages[0].get('x', 'y') }}{{ 'role' in messages[0] }}{{ messages[5] is defined }}", "{{ messages[5].role }}", "{{ messages[0].missing.deeper }}", "{{ messages[0]['missing']['deeper'] is defined }}",
    "{{ tools is none }}{{ tools is defined }}{{ documents }}{{ add_generation_prompt }}{{ bos_token is defined }}", "{{ self }}", "{{ varargs is defined }}{{ loop is defined }}{{ caller is defined }}",
    "{{ missing }}|{{ missing | default('d') }}|{{ missing ~ 'x' }}|{{ missing == missing }}|{{ missing == none }}|{{ [missing] }}|{{ missing | list }}|{{ missing | length }}|{{ 'x' in missing }}", "{{ missing + 1 }}", "{{ -missing }}", "{{ missing() }}", "{{ missing.a }}", "{{ missing[0] }}", "{{ missing < 1 }}", "{{ missing | int }}", "{{ missing | float }}", "{{ missing | round }}", "{{ missing | tojson }}", "{{ {missing: 1} | length }}", "{{ missing[1:] }}",
    "{{ '<' | e }}{{ ('<' | e) + '<' }}{{ '<' ~ ('<' | e) }}{{ ('<' | e) ~ '<' }}{{ ('<%s>' | safe) % '<' }}{{ ('{}' | safe).format('<') }}{{ ('<' | e) | e }}{{ ('<' | safe) | upper | e }}{{ ['<' | e] }}{{ ('-' | safe).join(['<', '&']) }}{{ ('a<' | safe).replace('a', '<') }}{{ ('<' | safe) * 2 }}{{ ('<' | safe)[0] | e }}{{ ['<', '>' | safe] | join('&') }}{{ 5 | e }}{{ none | e }}",
    "{{ l.append(1) }}", "{{ l.append }}", "{{ l.append is defined }}", "{{ d.update({'x': 1}) }}", "{{ ''.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ ''['__class__'] }}", "{{ s._private }}", "{{ '{0.__class__}'.format(s) }}", "{{ '{0.__class__.__mro__}'.format(s) }}", "{{ (lo | groupby('k'))[0].grouper }}{{ (lo | groupby('k'))[0].list | length }}{{ (lo | groupby('k'))[0][0] }}",
    "{{ 5.real }}", "{{ 5 .real }}", "{{ n.real }}", "{{ f.is_integer() }}{{ (2.0).is_integer() }}", "{{ lipsum is defined }}", "{{ s() }}", "{{ s.upper is callable }}", "{{ range is callable }}{{ s is callable }}",
    "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}", "{% do 1 %}",
    "{{ l | map('nosuch') | list }}", "{{ l | map | list }}", "{{ l | map(attribute='x', foo=1) | list }}", "{{ l | select('nosuch') | list }}", "{{ lo | selectattr | list }}", "{{ l | map('round', 1) | list }}", "{{ lo | map('attr', 'k') | list }}", "{{ [['b', 1], ['a', 2]] | sort(attribute='0') }}{{ [['b', 1], ['a', 2]] | sort(attribute=1) }}{{ [['b', 1], ['a', 2]] | map(attribute=0) | list }}", "{{ lo | map(attribute='o.i') | list }}", "{{ lo | map(attribute='o.i', default=0) | list }}", "{{ lo | sum(attribute='zz') }}",
    "{{ l | map('upper') | length }}", "{{ l | select | last }}", "{{ [1, 2] | reverse | list }}{{ 'ab' | reverse }}{{ (1, 2) | reverse | list }}{{ d | reverse | list }}", "{{ [1, 2] | reverse | length }}", "{% set g = l | map('string') %}{{ g | list }}{{ g | list }}", "{% set g = l | select %}{{ g is defined }}{{ g is iterable }}{{ g is sequence }}{{ g is string }}", "{{ none | selectattr('a') | list }}{{ none | map('upper') | list }}{{ none | select | list }}", "{{ none | list }}", "{{ none | join }}", "{{ none | length }}", "{{ none | items | list }}", "{{ missing | items | list }}", "{{ none | first }}", "{{ none | sort }}", "{{ none | unique | list }}", "{{ none | upper }}{{ none | trim }}{{ none | string }}{{ none | title }}", "{{ 5 | indent }}", "{{ 5 | truncate }}", "{{ none | tojson }}{{ true | tojson }}{{ 1.0 | tojson }}{{ 'é\\u2028</' | tojson }}{{ [] | tojson(indent=2) }}{{ {'a': {}, 'b': []} | tojson(indent=2) }}", "{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}", "{{ {(1, 2): 3} | tojson }}", "{{ {'b': 1, 1: 2} | tojson(sort_keys=true) }}", "{{ (1, (2, 'x')) | tojson }}", "{{ range(2) | tojson }}", "{{ d.items() | tojson }}", "{{ ('<' | safe) | tojson }}", "{{ [1, [2, {'a': 1}]] | tojson(indent=4, separators=(',', ':')) }}", "{{ 1 | tojson(indent=-1) }}{{ [1] | tojson(indent=-1) }}{{ [1] | tojson(indent=true) }}", "{{ [1] | tojson(indent=2.5) }}", "{{ [1] | tojson(separators=',') }}", "{{ [1] | tojson(foo=1) }}",
    "{{ {'a': 1}.a }}{{ {'a': 1}['a'] }}{{ {1: 'x'}[1] }}{{ {1: 'x'}[1.0] }}{{ {1: 'x'}[true] }}{{ {'1': 'x'}.1 is defined }}{{ {1: 'x'}.1 }}{{ [5].0 }}", "{{ {[1]: 2} }}", "{{ {'a': 1, 'a': 2} }}{{ {1: 'a', true: 'b', 1.0: 'c'} }}", "{{ d == {'b': 1, 'a': [1, 2], 'c': none, 'B': 'x'} }}{{ [1, 2] == [1.0, true + 1] }}{{ (1,) == [1] }}{{ 'a' == 'a' }}{{ none == 0 }}",
    "{{ (1, 2) < (1, 3) }}{{ [1] < [1, 0] }}{{ 'a' < 'B' }}{{ [2, 'a'] > [1, 2] }}", "{{ [1] < (1,) }}", "{{ none < 1 }}", "{{ 'a' < 1 }}", "{{ {} < {} }}", "{{ 1 in 'abc' }}", "{{ 'a' in 1 }}", "{{ [1] in [[1]] }}{{ 'b' in {'b': 1} }}{{ 1 in {1.0: 2} }}{{ 'a' in 'abc' }}{{ '' in 'abc' }}", "{{ [1] in d }}",
    "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 1.0 / 0 }}", "{{ 0 ** -1 }}", "{{ (-8) ** 0.5 }}", "{{ 2.0 ** 10000 }}", "{{ 10 ** 30 }}{{ 2 ** 0.5 }}{{ 9007199254740993 + 1 }}{{ 9007199254740993 * 1.0 }}{{ 10 ** 20 / 3 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7.5 // 2 }}{{ -7.5 // 2 }}{{ -7.5 % 2 }}{{ 1e16 // 1 }}{{ 5 / 2 }}{{ 6 / 2 }}{{ true + true }}{{ -true }}{{ +'a' if false else 1 }}",
    "{{ 0.1 + 0.2 }} {{ 1e100 }} {{ 1.5e-5 }} {{ 123456789012345.6 }} {{ 1234567890123456.7 }} {{ 12345678901234567.8 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1e22 }} {{ 1e21 }} {{ 5e-324 }} {{ 1.7976931348623157e308 }} {{ -0.0 }} {{ 1e400 }} {{ -1e400 }} {{ 1e400 - 1e400 }}",
    "{{ 0.5 | round }}{{ 1.5 | round }}{{ 2.5 | round }}{{ 2.675 | round(2) }}{{ 0.125 | round(2) }}{{ 1234.5 | round(-2) }}{{ 1250 | round(-2) }}{{ 7 | round(2) }}{{ 2.1 | round(0, 'ceil') }}{{ 2.9 | round(0, 'floor') }}{{ 2.345 | round(2, 'ceil') }}{{ 5 | round(0, 'floor') }}{{ -2.5 | round }}{{ 1e20 | round }}", "{{ 'x' | round }}", "{{ 1 | round(1, 'x') }}",
    "{{ '0x1f' | int(0, 16) }}{{ '0x1f' | int(base=0) }}{{ '1_000' | int }}{{ ' 42 ' | int }}{{ '-5' | int }}{{ '42.9' | int }}{{ 'abc' | int(7) }}{{ none | int }}{{ [] | int }}{{ '1e3' | int }}{{ 'ff' | int(0, 16) }}{{ 'zz' | int(base=36) }}{{ true | int }}{{ '' | int }}{{ 'inf' | int }}{{ '٣' | int }}", "{{ 1e400 | int }}", "{{ '1e3' | float }}{{ ' 2.5 ' | float }}{{ 'inf' | float }}{{ 'nan' | float }}{{ '-Infinity' | float }}{{ 'x' | float }}{{ none | float }}{{ '1_0.5' | float }}{{ '.5' | float }}{{ '5.' | float }}{{ true | float }}{{ 10 ** 20 | float }}",
    "{{ 100 | filesizeformat }} {{ 1 | filesizeformat }} {{ 0 | filesizeformat }} {{ 1000 | filesizeformat }} {{ 1024 | filesizeformat(true) }} {{ 1e25 | filesizeformat }} {{ '3000' | filesizeformat }} {{ 1500000 | filesizeformat(binary=true) }} {{ 999999 | filesizeformat }}",
    "{{ d | pprint }}{{ l | pprint }}{{ s | pprint }}{{ [range(30) | list, range(30) | list] | pprint }}", "{{ {'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa': 1, 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb': [1, 2]} | pprint }}",
    "{{ 'see http://a.b/c?d=e&f, (www.x.org) and <https://y.z/(q)>. me@x.com mailto:a@b.co @a@b ftp://q.r x.com/y 1.2.3.4' | urlize }}", "{{ 'http://abc.de/fghij www.k.lm' | urlize(10, true, '_blank', rel='me') }}", "{{ 'ftp:x tel:123' | urlize(extra_schemes=['ftp:', 'tel:']) }}", "{{ 'x' | urlize(extra_schemes=['f']) }}", "{{ ('word ' * 30) | pprint }}", "{{ {'k': 'word ' * 30, 'l': ['line\\n' * 20, 1], 'm': ('x' * 90,)} | pprint }}", "{{ ('ab\\n' * 40) | pprint }}",
    "{{ 'a b' | urlencode }}{{ 'a/b?c=é&d' | urlencode }}{{ {'a b': 'c/d', 'e': 1} | urlencode }}{{ [('x', 'y z')] | urlencode }}{{ 5 | urlencode }}", "{{ '<p>a  <b>b</b>\\n&amp; &lt;x&gt; <!-- c --> d</p>' | striptags }}", "{{ {'class': 'a b', 'id': none, 'x': missing, 'n': 1, 'q': '\"<'} | xmlattr }}", "{{ {'a b': 1} | xmlattr }}", "{{ {} | xmlattr }}|",
    "{{ 'ab cd-ef gh(ij' | title }}{{ \"it's o'neil\" | title }}{{ \"it's o'neil\".title() }}{{ 'ñandú élan' | capitalize }}{{ 'ßx'.capitalize() }}{{ 'ǆ'.title() }}{{ 'HELLO world' | capitalize }}", "{{ 'ﬁ'.upper() }}{{ 'İ'.lower() | length }}{{ 'ΑΣ'.lower() }}{{ 'Straße'.casefold() }}{{ 'Straße'.swapcase() }}", "{{ '²'.isdigit() }}{{ '²'.isdecimal() }}{{ '½'.isnumeric() }}{{ '½'.isdigit() }}{{ '٣'.isdigit() }}{{ 'é'.isalpha() }}{{ ''.isalpha() }}{{ 'a1'.isalnum() }}{{ '\\t'.isprintable() }}{{ ' '.isspace() }}{{ 'A b'.istitle() }}{{ 'Ab Cd'.istitle() }}{{ '_a'.isidentifier() }}{{ '1a'.isidentifier() }}", "{{ 'a,b,,c'.split(',') }}{{ 'a b  c'.split(' ') }}{{ ' a  b '.split() }}{{ 'a b c d'.split(none, 2) }}{{ 'a b c d'.rsplit(none, 2) }}{{ ''.split() }}{{ ''.split(',') }}{{ 'abc'.split('') if false else 1 }}{{ ' a b '.rsplit(none, 1) }}", "{{ '\\x1c a \\x85'.strip() | length }}{{ '\\ufeffa'.strip() | length }}{{ '\\u200ba'.strip() | length }}{{ 'a\\x1cb\\x85c\\u2028d\\x0be'.splitlines() }}{{ 'a\\n'.splitlines() }}{{ '\\n'.splitlines() }}{{ ''.splitlines() }}",
    "{{ ['\\x00', '\\x7f', '\\u0085', '\\u200b', '\\ue000', '\\u00ad', 'é', '😀', '\\u2028', \"'\", '\"', '\\'\"', '\\\\'] }}", "{{ {'a': ('x', none, 1.0, {'y': \"it's\"})} }}{{ [true, [false]] }}{{ ((),) }}", "{{ u.encode('utf-8') }}{{ 'ab'.encode() }}{{ 'é'.encode('latin-1') }}{{ 'ab'.encode().decode() }}", "{{ 'é'.encode('ascii') }}", "{{ d.keys() }}{{ d.values() }}{{ d.items() }}{{ d.keys() | list }}{{ 'a' in d.keys() }}{{ d.keys() | first }}{{ d.values() | last }}{{ d.items() | length }}{{ d.keys() == d.keys() }}", "{{ d.keys()[0] }}", "{{ di.items is callable }}{{ di['items'] }}{{ di.items() | list }}{{ di.get('get') }}{{ di.keys() | join }}", "{{ lo[0].k }}{{ lo[0]['k'] }}{{ lo[-1].o.i }}{{ lo[1].o is defined }}{{ lo | first | tojson }}",
    "{{ lm | unique | list }}", "{{ ll | unique | list }}", "{{ lm | sort }}", "{{ [1, 'a'] | sort }}", "{{ [none, 1] | min }}", "{{ ['b', 'A'] | min }}{{ ['b', 'A'] | max }}{{ [] | min is defined }}{{ ['b', 'B'] | unique | join }}{{ 'hello' | unique | join }}{{ 'hello' | sort | join }}{{ 'hello' | list }}{{ 'hello' | first }}{{ 'hello' | last }}{{ 'ab' | max }}", "{{ l | batch(2) | list }}{{ l | batch(2, 0) | list }}{{ l | slice(2) | list }}{{ range(7) | slice(3, 'x') | list }}{{ [] | batch(2) | list }}", "{{ l | slice(0) | list }}", "{{ l * 2 }}{{ 2 * l }}{{ 'ab' * 0 }}{{ 'ab' * -1 }}{{ l + l }}{{ (1,) + (2,) }}", "{{ l + (1,) }}", "{{ l + 'a' }}", "{{ 'a' + 1 }}", "{{ 1 + 'a' }}", "{{ d + d }}", "{{ 'a' * 'b' }}", "{{ l * 1.5 }}", "{{ 'a' - 'b' }}", "{{ -'a' }}", "{{ none + 1 }}", "{{ 'abc'[1] }}{{ 'abc'[-1] }}{{ 'abc'[9] is defined }}{{ 'abc'['x'] is defined }}{{ 'a😀b'[1] }}{{ 'a😀b' | length }}{{ 'a😀b'[::-1] }}{{ 'a😀b'.find('b') }}{{ 'a😀b'.center(7, '-') }}",
    "{{ s.split(', ')[0].upper() | lower }}{{ s | upper | replace('L', 'x') | length }}{{ (s | list)[0:2] | join }}{{ s | list | length == s | length }}", "{{ m | indent }}|{{ m | indent(2, blank=true) }}|{{ m | indent('\\t', true) }}|{{ '' | indent }}|{{ 'a\\n' | indent(first=true) }}", "{{ m | wordwrap(4) }}|{{ p | wordwrap(7) }}|{{ p | wordwrap(10, break_on_hyphens=false) }}|{{ 'aaaaaaaaaa bb' | wordwrap(4, break_long_words=false) }}|{{ '  lead' | wordwrap(4) }}", "{{ 'a b' | wordwrap(0) }}", "{{ s | truncate(8, leeway=0) }}{{ s | truncate(8, true, leeway=0) }}{{ s | truncate(255) }}{{ s | truncate(7) }}{{ s | truncate(5, end='') }}", "{{ 'a.b' | replace('.', '') }}{{ 'aaa' | replace('a', 'b', 2) }}{{ 5 | replace(5, 6) }}{{ 'a$1' | replace('a', '$&') }}", "{{ '%s and %s' | format('a', 1) }}{{ '%(x)s' | format(x=1) }}", "{{ '%s' | format('a', 'b') }}", "{{ '%s %s' | format('a') }}", "{{ '%s' | format(1, x=2) }}", "{{ '%s' % none }}{{ '%s' % [1] }}{{ '%s' % (1,) }}{{ '%s,%s' % (1, 'x') }}{{ '%d%%' % 5 }}{{ 'a' % () }}{{ 'a' % [] }}{{ 'a' % {} }}", "{{ 'a' % 1 }}", "{{ '%d' % 'x' }}", "{{ '%s' % () }}", "{{ '{} {}'.format(1) }}", "{{ '{a[b]} {c.d}'.format(a={'b': 1}, c={'d': 2}) }}", "{{ '{a[b]}{c}'.format(a={'b': 1}, c=dict(d=2)) }}{{ '{0[1]}'.format([5, 6]) }}{{ '{:{w}}|'.format('x', w=5) }}", "{{ '{x}'.format_map({'x': 1}) }}", "{{ '{:d}'.format('x') }}", "{{ '{:.2d}'.format(5) }}", "{{ '{:5}|{:5}|{:5}'.format('a', 1, true) }}", "{{ '{:>4}'.format(none) }}",
]


def combinations():
    for value, name in itertools.product(NAMES, FILTERS):
        for after in AFTER:
            yield f"{{{{ {value} | {name}{after} }}}}"
    for value, name in itertools.product(NAMES, TESTS):
        yield f"{{{{ {value} is {name} }}}}" if not name.startswith("==") else f"{{{{ [{value}] | select('==', 7) | list }}}}"
    for value, name in itertools.product(["s", "e", "w", "m", "u", "q", "p", "num", "('<b>' | safe)"], STRING_METHODS):
        yield f"{{{{ {value}.{name} }}}}"
    for value, name in itertools.product(["l", "lm", "(1, 2)", "range(3)"], LIST_METHODS):
        yield f"{{{{ {value}.{name} }}}}"
    for value, name in itertools.product(["d", "di", "dn"], DICT_METHODS):
        yield f"{{{{ {value}.{name} }}}}"
    for value, name in itertools.product(["n", "neg", "big", "f", "h", "t", "none"], NUMBER_METHODS):
        yield f"{{{{ {value}.{name} }}}}"
    for a, operator, b in itertools.product(OPERANDS, OPERATORS, OPERANDS):
        if operator in ("**", "*") and "12345678901234567890" in (a, b):
            continue  # takes for ever
        yield f"{{{{ {a} {operator} {b} }}}}"
    for form, a in itertools.product(FORMATS, FORMAT_ARGUMENTS):
        yield f"{{{{ '{form}'.format({a}, 3) }}}}"
    for form, a in itertools.product(PERCENTS, FORMAT_ARGUMENTS):
        yield f"{{{{ '{form}' % {a} }}}}"
        yield f"{{{{ '{form}' % (6, {a}) }}}}"
        yield f"{{{{ '{form}' | format({a}) }}}}"
    for value, part in itertools.product(SLICED, SLICES):
        yield f"{{{{ {value}{part} }}}}"


class Expressions:
    """Random expressions."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, depth):
        pick = self.random.choice
        if depth == 0:
            return pick(NAMES + OPERANDS)
        kind = self.random.randrange(12)
        a = self.one(depth - 1)
        if kind < 4:
            return f"({a} | {pick(FILTERS)})"
        if kind == 4:
            return f"({a} {pick(OPERATORS).replace('**', '+')} {self.one(depth - 1)})"
        if kind == 5:
            return f"({a} is {pick(TESTS).replace('==7', 'none')})"
        if kind == 6:
            return f"{a}{pick(SLICES)}" if a[0] not in "-0123456789'" else a
        if kind == 7:
            return f"({a}).{pick(STRING_METHODS + LIST_METHODS + DICT_METHODS)}"
        if kind == 8:
            return f"[{a}, {self.one(depth - 1)}]"
        if kind == 9:
            return f"({a} if {self.one(depth - 1)} else {self.one(depth - 1)})"
        if kind == 10:
            return f"{{'k': {a}, {self.one(0)}: 2}}"
        return f"(not {a})"


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def render(template):
    try:
        (text,), _ = ctu.render_jinja_template([MESSAGES], chat_template=template, **VARIABLES)
    except Exception as error:
        return {"t": template, "error": type(error).__name__}
    return {"t": template, "out": text}


def is_stable(case):
    """Whether a second run gives the same: no addresses of objects, no very long texts."""
    return not re.search(r" at 0x[0-9a-f]+", case.get("out", "")) and len(case.get("out", "")) < 2000


def main():
    number = lambda default, text: {"type": int, "default": default, "help": text}
    a = arguments(__doc__, random=number(500, "random expressions"), seed=number(18, "of these and of the sample"), sample=number(1100, "of the combinations; 0: all"))
    combined = list(dict.fromkeys(combinations()))
    if a.sample:
        combined = random.Random(a.seed).sample(combined, a.sample)
    expressions = Expressions(a.seed)
    drawn = [f"{{{{ {expressions.one(1 + i % 3)} }}}}" for i in range(a.random)]
    cases = [case for case in map(render, dict.fromkeys([*STATEMENTS, *combined, *drawn])) if is_stable(case)]
    head = {"provenance": provenance(__file__, a.seed, "exact"), "now": [NOW.year, NOW.month, NOW.day, NOW.hour, NOW.minute, NOW.second, NOW.microsecond],
            "variables": VARIABLES, "messages": MESSAGES}
    save_records(a.out / "chat" / "jinja.json", head, cases)
    print(f"{len(cases)} templates, {sum('error' in c for c in cases)} of them refused")


if __name__ == "__main__":
    main()
