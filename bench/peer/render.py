"""Renders conversations with chat templates as transformers' apply_chat_template does.

  --input FILE   {"templates": [{"name", "source", "special": {token name: text}}],
                  "conversations": [{"messages", "tools", "documents", "variables", "add_generation_prompt", "continue_final_message"}]}
  --out FILE     {template name: [text of each conversation, or null where it is rejected]}
"""
import argparse
import json

import transformers.utils.chat_template_utils as ctu


def render(template, conversation):
    messages = [{k: v for k, v in m.items() if v is not None} for m in conversation["messages"]]
    options = {name: conversation[name] for name in ("documents", "add_generation_prompt", "continue_final_message") if name in conversation}
    variables = template["special"] | conversation.get("variables", {})
    try:
        (text,), _ = ctu.render_jinja_template([messages], tools=conversation.get("tools"), chat_template=template["source"], **options, **variables)
        return text
    except Exception:
        return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--input")
    parser.add_argument("--out")
    a = parser.parse_args()
    with open(a.input) as f:
        given = json.load(f)
    texts = {t["name"]: [render(t, c) for c in given["conversations"]] for t in given["templates"]}
    with open(a.out, "w") as f:
        json.dump(texts, f)
    print(json.dumps({"templates": len(texts)}))


if __name__ == "__main__":
    main()
