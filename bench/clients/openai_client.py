"""Asks a server with the Python package openai: models, chat, completions, tools, JSON of a schema, vectors, errors; whole and in streams.

    python openai_client.py URL API_KEY

The last line is a JSON document: how many answers were checked, and the versions.
"""

import json
import platform
import sys

import openai

url, key = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
GREETING = "Good day to you."
checked = 0


def check(holds, what):
    global checked
    assert holds, what
    checked += 1


names = [model.id for model in client.models.list()]
check(names == ["tiny", "caller", "greeter"], names)
fields = dict(messages=[{"role": "user", "content": "Hello"}], temperature=0, max_completion_tokens=90)

whole = client.chat.completions.create(model="greeter", **fields)
check(whole.choices[0].message.content == GREETING, whole)
check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
chunks = list(client.chat.completions.create(model="greeter", stream=True, stream_options={"include_usage": True}, **fields))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
check(text == GREETING, text)
check(chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1])

schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"], "additionalProperties": False}
weather = {"type": "function", "function": {"name": "weather", "description": "The weather in a city.", "parameters": schema}}
call = client.chat.completions.create(model="caller", tools=[weather], **fields).choices[0]
check(call.finish_reason == "tool_calls", call)
check(json.loads(call.message.tool_calls[0].function.arguments) == {"city": "Oslo"}, call)
with client.chat.completions.stream(model="caller", tools=[weather], **fields) as stream:
    final = stream.get_final_completion()
check(final.choices[0].message.tool_calls[0].function.name == "weather", final)

kinds = {"type": "object", "properties": {"kind": {"type": "string", "enum": ["a", "b"]}}, "required": ["kind"], "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "x", "schema": kinds, "strict": True}}
made = client.chat.completions.create(model="tiny", response_format=form, **fields)
check(json.loads(made.choices[0].message.content)["kind"] in ("a", "b"), made)

plain = client.completions.create(model="tiny", prompt="one", max_tokens=4, temperature=0, logprobs=1)
check(len(plain.choices[0].logprobs.tokens) == 4, plain)
pieces = client.completions.create(model="tiny", prompt="one", max_tokens=4, temperature=0, stream=True)
check("".join(piece.choices[0].text for piece in pieces) == plain.choices[0].text, plain)
vectors = client.embeddings.create(model="tiny", input=["one", "two"])
check([len(one.embedding) for one in vectors.data] == [32, 32], "two vectors of 32")

for error, send in [
    (openai.NotFoundError, lambda: client.chat.completions.create(model="none", **fields)),
    (openai.BadRequestError, lambda: client.chat.completions.create(model="tiny", store=True, **fields)),
    (openai.AuthenticationError, lambda: openai.OpenAI(base_url=f"{url}/v1", api_key="x" * 20, max_retries=0).models.list()),
]:
    try:
        send()
    except error:
        check(True, error)
    else:
        raise AssertionError(f"{error.__name__} was expected")
print(json.dumps({"checked": checked, "openai": openai.__version__, "python": platform.python_version()}))
