"""Chat templates for make_chat.py, written for these goldens in the style of known families. Writes no files itself.

special: the special tokens that the template can use. A value of null in TEMPLATES is replaced by the model's own template.
"""
HF = {"bos_token": "<s>", "eos_token": "</s>"}
L3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
IM = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

TEMPLATES = {}
SPECIAL = {}


def template(name, special, text):
    TEMPLATES[name] = text
    SPECIAL[name] = special


template("smollm2", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, None)

template("chatml", IM, r"""{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}""")

template("llama2-inst", HF, r"""{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}
{% else %}
{% set loop_messages = messages %}
{% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{% elif message['role'] == 'assistant' %}
{{- ' ' + content.strip() + ' ' + eos_token -}}
{% endif %}
{% endfor %}""")

template("llama3-headers", L3, r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: functions\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if loop.first and tools is not none and message.role == 'user' %}
        {{- "<|start_header_id|>user<|end_header_id|>\n\nYou may call these functions:\n\n" }}
        {%- for t in tools %}
            {{- t | tojson(indent=4) }}
            {{- "\n\n" }}
        {%- endfor %}
        {{- message.content | trim + "<|eot_id|>" }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("Only one tool call at a time is possible") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" + '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role in ["tool", "ipython"] %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}""")

template("mistral", HF, r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set ns = namespace(turn=0, last_user=-1) %}
{%- for m in rest %}
    {%- if m.role == "user" %}{% set ns.last_user = loop.index0 %}{% endif %}
    {%- if m.role in ("user", "assistant") and not m.get("tool_calls") %}
        {%- if (m.role == "user") != (ns.turn % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate; message " ~ loop.index ~ " is from " ~ m.role) }}
        {%- endif %}
        {%- set ns.turn = ns.turn + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in rest %}
    {%- if m.role == "user" %}
        {%- if tools is not none and loop.index0 == ns.last_user %}
            {{- "[AVAILABLE_TOOLS] " + tools | tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + m.content + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + m.content + "[/INST]" }}
        {%- endif %}
    {%- elif m.tool_calls is defined and m.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for c in m.tool_calls %}
            {{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' + (", " if not loop.last else "]" + eos_token) }}
        {%- endfor %}
    {%- elif m.role == "assistant" %}
        {{- " " + m.content | trim + eos_token }}
    {%- elif m.role == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' ~ m.content | string | tojson ~ ', "call_id": "' ~ m.tool_call_id ~ '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool roles are known, not " + m.role) }}
    {%- endif %}
{%- endfor %}""")

template("zephyr", HF, r"""{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""")

template("gemma", {"bos_token": "<bos>", "eos_token": "<eos>"}, r"""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""")

template("qwen-tools", IM, r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- else %}
        {{- 'You are a careful helper.\n\n' }}
    {%- endif %}
    {{- "# Tools\n\nSignatures stand between <tools></tools>:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\nAnswer with\n<tool_call>\n{\"name\": NAME, \"arguments\": OBJECT}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a careful helper.<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- if loop.index0 > ns.last_query and reasoning %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\n' }}{% endif %}
            {%- set call = call.function or call %}
            {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}""")

template("phi", {"bos_token": "<s>", "eos_token": "<|endoftext|>"}, r"""{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}""")

template("alpaca-like", HF, r"""{%- set names = {'user': 'Instruction', 'assistant': 'Response', 'system': 'Context'} -%}
{%- for message in messages -%}
{{- '### ' ~ names.get(message.role, message.role | title) ~ ':\n' ~ message.content ~ (eos_token if message.role == 'assistant' else '') ~ '\n\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\n' -}}{%- endif -%}""")

template("dates", HF, r"""{%- macro stamp(kind) -%}
{%- if kind == 'long' -%}{{ strftime_now("%B %d, %Y") }}{%- else -%}{{ strftime_now("%Y-%m-%d") }}{%- endif -%}
{%- endmacro -%}
Today is {{ stamp('long') }} ({{ stamp('iso') }}, {{ strftime_now("%d %b %Y") }}).
{% for message in messages %}
{{ loop.index0 }}/{{ loop.length }} {{ message.role }}{% if not loop.last %},{% endif %}{{ '\n' }}
{%- endfor %}""")

# Rarer features that published templates use: one small template for each feature, so that a failure names it.
FEATURES = {
    "map-join-unique": r"""{%- set roles = messages | map(attribute='role') | list -%}roles: {{ roles | join(', ') }}; {{ roles | unique | list | length }}""",
    "select-reject": r"""{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'equalto', 'user') | list | length }}""",
    "first-last-case": r"""{{ (messages | first).content | upper }}|{{ (messages | last).content | lower }}""",
    "print-list": r"""{{ messages | map(attribute='role') | list }} {{ ['a', "it's", 1, 2.5, none, true] }} {{ {'k': [1]} }}""",
    "slices": r"""{%- set r = ['a', 'b', 'c', 'd'] -%}{{ r[:2] | join }} {{ r[-1] }} {{ r[1:][:1] | join }} {{ r[::2] | join }} {{ r[::-1] | join }} {{ 'abcdef'[1:4] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[-3:] }}""",
    "items": r"""{% for key, value in {'b': 1, 'a': [1, 2.5, none, true, 'x"y']}.items() -%}{{ key }}={{ value | tojson }};{%- endfor %}""",
    "tojson-indent": r"""{{ {'z': 'é<&>', 'a': {'n': [1, {'k': 'v'}], 'e': [], 'o': {}}} | tojson(indent=2) }}""",
    "tojson-messages": r"""{{ messages | tojson }}""",
    "arithmetic": r"""{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 5 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 1 + 2 * 3 }} {{ 1.0 }} {{ 3 | float }} {{ '4' | int + 1 }}""",
    "operators": r"""{{ 'a' ~ 1 ~ true ~ none }} {{ 1 == 1.0 }} {{ '' == false }} {{ 0 == false }} {{ not (1 > 2) and 3 in [1, 2, 3] }} {{ 'x' in 'xyz' }} {{ 'a' 'b' }}""",
    "undefined": r"""{{ nothing | default('d') }} {{ nothing is defined }} {{ none is none }} {{ nothing or 'or' }} {{ '' | default('e', true) }}[{{ nothing }}][{{ messages[0].nothing }}]""",
    "strings": r"""{{ 'A-b_c d' | replace('-', '+') }}|{{ '  pad ' | trim }}|{{ 'one two' | title }}|{{ 'ÉCOLE straße' | capitalize }}|{{ 'a,b,,c'.split(',') | tojson }}|{{ ' xx '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abc'.startswith('ab') }}|{{ 'aXbX'.replace('X', '-') }}|{{ 'a b  c'.split() | tojson }}""",
    "loop-filter-else": r"""{% for m in messages if m.role != 'system' %}{{ loop.index }}:{{ loop.revindex }}{{ '.' if loop.last else '-' }}{% else %}nobody{% endfor %}{% for x in [] %}{% else %} none{% endfor %}""",
    "loop-controls": r"""{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}""",
    "namespace": r"""{% set c = namespace(n=0) %}{% set outer = 0 %}{% for m in messages %}{% set c.n = c.n + (m.content | length) %}{% set outer = 1 %}{% endfor %}{{ c.n }} {{ outer }}""",
    "macro": r"""{% macro say(who, what='nothing', loud=false) %}{{ who }}: {{ what | upper if loud else what }};{% endmacro %}{{ say('a') }}{{ say('b', 'x') }}{{ say('c', loud=true, what='y') }}""",
    "filter-block-set-block": r"""{% set text %}a {{ messages[0].role }} b{% endset %}{{ text | upper }}{% filter upper %} q{% endfilter %}""",
    "previtem-nextitem": r"""{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ m.role }}>{{ loop.nextitem.role if not loop.last }} {% endfor %}""",
    "raw": r"""{{ "{{ not jinja }}" }} {% raw %}{{ raw }}{% endraw %} {{ 'tab\tnew\\n' }}""",
    "dictsort-sort": r"""{{ {'b': 2, 'a': 1} | dictsort }} {{ [3, 1, 2] | sort | join }} {{ ['b', 'A', 'c'] | sort | join }} {{ [1, 2, 3] | sum }} {{ [1, 5, 3] | max }}""",
    "tests": r"""{{ 'a' is string }} {{ 1 is number }} {{ [] is iterable }} {{ {} is mapping }} {{ 'a' is iterable }} {{ [1] is sequence }} {{ 3 is odd }} {{ true is boolean }} {{ 2 is integer }} {{ none is not none }}""",
}
for name, text in FEATURES.items():
    template("feature-" + name, HF, text)

template("white-space", HF, """{% for message in messages %}
  {% if message.role == 'user' %}
    <u>{{ message.content }}</u>
  {%- else -%}
    <o>  {{- message.content -}}  </o>
\t{% endif %}
{# a comment line #}
   {% if true %}kept {% endif %}

{% endfor %}

end
{% if add_generation_prompt %}
go
{% endif %}
""")

template("plus-signs", HF, """{% for message in messages %}
   {%+ if true %}kept {{ message.role }}{% endif +%}
{% endfor %}""")

template("needs-content-list", HF, r"""{% for message in messages %}{{ message.role }}: {% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %}{% endfor %}{% endif %}
{% endfor %}""")

template("chatml-generation", IM, r"""{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- generation -%}
{{- message.content + '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}""")

template("turns-generation", {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, r"""{{ bos_token }}{% for message in messages %}
{% if message.role == 'assistant' %}
Bot:{% generation %} {{ message.content | trim }}{{ eos_token }}
{% endgeneration %}
{% else %}
{{ message.role | capitalize }}: {{ message.content | trim }}
{% endif %}
{% endfor %}""")

CONVERSATIONS = {
    "user": [{"role": "user", "content": "What is the capital of France?"}],
    "system": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say hi."}],
    "one-turn": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    "many-turns": [{"role": "system", "content": "Be kind.\n\nAnswer in French."}, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Bonjour !"},
                   {"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Très bien, merci.\nEt vous ?"}, {"role": "user", "content": "Fine."}],
    "unicode": [{"role": "user", "content": "नमस्ते 👩🏽‍💻 — “ça va?” 你好\u00a0مرحبا"}, {"role": "assistant", "content": "e\u0301 vs \u00e9 ﬁ 🏳️‍🌈\u200b"}, {"role": "user", "content": "<b>&amp; 'q' \"d\" \\n {{ x }} {% y %} <|im_end|>"}],
    "blank-edges": [{"role": "system", "content": "  padded system \n"}, {"role": "user", "content": "\n\n  hi there \t\n"}, {"role": "assistant", "content": " ok \n\n"}, {"role": "user", "content": " "}],
    "empty": [{"role": "system", "content": ""}, {"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "two-users": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}],
    "assistant-first": [{"role": "assistant", "content": "Welcome!"}, {"role": "user", "content": "thanks"}],
    "late-system": [{"role": "user", "content": "hi"}, {"role": "system", "content": "change of plan"}, {"role": "assistant", "content": "ok"}],
    "thinking": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>\nbecause\n</think>\n\nSo."}, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes.", }],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "nice?"}]}, {"role": "assistant", "content": "Yes"}],
    "tool-call": [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "Weather in Zürich & Köln?"},
                  {"role": "assistant", "content": "", "tool_calls": [{"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "units": None, "exact": True}}}]},
                  {"role": "tool", "tool_call_id": "abc123def", "name": "weather", "content": "{\"t\": 21.5, \"sky\": \"<clear>\"}"}, {"role": "assistant", "content": "21.5 °C."}, {"role": "user", "content": "Thanks"}],
    "two-tool-calls": [{"role": "user", "content": "Both?"}, {"role": "assistant", "content": "Let me see.", "tool_calls": [{"id": "id0000001", "function": {"name": "a", "arguments": {"x": 1.0, "y": [1, 2]}}},
                       {"id": "id0000002", "function": {"name": "b", "arguments": {}}}]}, {"role": "tool", "tool_call_id": "id0000001", "content": "1"}, {"role": "tool", "tool_call_id": "id0000002", "content": "2"}],
    "unknown-role": [{"role": "user", "content": "hi"}, {"role": "critic", "content": "hm"}],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather of a city, in °C; it's <b>fast</b> & \"free\".", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "name"}, "days": {"type": "integer", "enum": [1, 2, 3]}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "b", "description": "", "parameters": {"type": "object", "properties": {}}}}]

# (template, conversation, extra arguments of apply_chat_template); add_generation_prompt is tried both ways where not given
PLAIN = ["user", "system", "one-turn", "many-turns", "unicode", "blank-edges", "empty", "two-users", "late-system"]
CASES = [(t, c, {}) for t in TEMPLATES if t != "needs-content-list" and not t.startswith("feature-") for c in PLAIN]
CASES += [(t, c, {"add_generation_prompt": False}) for t in TEMPLATES if t.startswith("feature-") for c in ("many-turns", "unicode")]
CASES += [(t, c, {}) for t in ("llama2-inst", "mistral", "gemma", "zephyr", "qwen-tools") for c in ("assistant-first", "unknown-role")]
CASES += [("needs-content-list", c, {}) for c in ("user", "parts", "many-turns", "unicode", "tool-call")]
CASES += [("chatml", "parts", {}), ("qwen-tools", "thinking", {}), ("qwen-tools", "parts", {}), ("qwen-tools", "user", {"enable_thinking": False})]
CASES += [(t, c, {"tools": True}) for t in ("qwen-tools", "llama3-headers", "mistral") for c in ("user", "system", "tool-call", "two-tool-calls")]
CASES += [(t, c, {}) for t in ("qwen-tools", "llama3-headers", "mistral") for c in ("tool-call", "two-tool-calls")]
CASES += [("llama3-headers", "system", {"date_string": "01 Jan 2030"})]
CASES += [(t, c, {"continue_final_message": True, "add_generation_prompt": False}) for t in ("smollm2", "chatml", "llama2-inst", "llama3-headers", "zephyr") for c in ("one-turn", "two-users")]
MASKS = [(t, c) for t in ("chatml-generation", "turns-generation") for c in PLAIN + ["thinking", "assistant-first"]] + [("chatml", "many-turns")]
