"""Writes chat/chat.json: chat templates rendered by transformers' apply_chat_template, and chat/masks.json: assistant masks.

  --smollm2 DIR   Hugging Face directory of SmolLM2 (tokenizer and chat template)

chat.json: templates {name: text}, special {name: tokens that the template sees}, conversations, tools, now (what strftime_now
sees; a naive local time), cases[]: {template, conversation, args, and rendered or error + message}
  args are those of apply_chat_template; "tools": true stands for the tools above.
  Errors of class TemplateError come from raise_exception: class and message are then exact; of other errors only the
  fact that one is raised is a golden.
masks.json cases[]: {template, conversation, rendered, spans: [[from, to)] of {% generation %} in code points of rendered,
  ids, mask} with the SmolLM2 tokenizer: return_dict, return_assistant_tokens_mask, no special tokens added by the tokenizer.
"""
import pathlib

import transformers.utils.chat_template_utils as ctu
from transformers import AutoTokenizer

import chat_templates as T
from common import FrozenClock, arguments, provenance, save_records

ctu.datetime = FrozenClock


def main():
    a = arguments(__doc__, smollm2=dict(type=pathlib.Path, required=True))
    tok = AutoTokenizer.from_pretrained(a.smollm2)
    T.TEMPLATES["smollm2"] = tok.chat_template
    records = []
    for template, conversation, extra in T.CASES:
        for generate in (False, True) if "add_generation_prompt" not in extra else (extra["add_generation_prompt"],):
            args = extra | {"add_generation_prompt": generate}
            record = {"template": template, "conversation": conversation, "args": args}
            real = args | {"tools": T.TOOLS} if args.get("tools") else args
            try:
                record["rendered"] = tok.apply_chat_template(T.CONVERSATIONS[conversation], chat_template=T.TEMPLATES[template], tokenize=False,
                                                             **T.SPECIAL[template], **real)
            except Exception as e:
                record |= {"error": type(e).__name__, "message": str(e)}
            records.append(record)
    seen = set()
    records = [r for r in records if not (str(r) in seen or seen.add(str(r)))]
    head = {"provenance": provenance(__file__, None, "exact"), "now": FrozenClock.now().isoformat(), "templates": T.TEMPLATES, "special": T.SPECIAL,
            "tools": T.TOOLS, "conversations": T.CONVERSATIONS}
    save_records(a.out / "chat" / "chat.json", head, records)

    masks = []
    for template, conversation in T.MASKS:
        chat, text = T.CONVERSATIONS[conversation], T.TEMPLATES[template]
        out = tok.apply_chat_template(chat, chat_template=text, return_dict=True, return_assistant_tokens_mask=True, **T.SPECIAL[template])
        (rendered,), (spans,) = ctu.render_jinja_template([chat], chat_template=text, return_assistant_tokens_mask=True, **T.SPECIAL[template])
        masks.append({"template": template, "conversation": conversation, "rendered": rendered, "spans": [list(s) for s in spans],
                      "ids": out["input_ids"], "mask": out["assistant_masks"]})
    save_records(a.out / "chat" / "masks.json", {"provenance": provenance(__file__, None, "exact"), "templates": "chat.json", "tokenizer": "SmolLM2, see tokenizer/smollm2.golden.json"}, masks)
    print(len(records), "renders,", sum("error" in r for r in records), "refused;", len(masks), "masks")
    for r in records:
        if "error" in r:
            print("-", r["template"], r["conversation"], r["args"], r["error"], r["message"][:100])
    for m in masks[:4] + masks[-1:]:
        print(m["template"], m["conversation"], m["spans"], sum(m["mask"]), "of", len(m["mask"]))


if __name__ == "__main__":
    main()
