"""Writes tokenizer/corpus.jsonl: one JSON string in each line, UTF-8: the texts that every tokenizer golden encodes.

Hand-written lines by kind, then seeded mixtures. Lines may hold line breaks, so read it as JSON, not as plain text.
There are no lone surrogates and no NUL, but anything else that a user may paste.
"""
import json
import random
import unicodedata

from common import arguments

ENGLISH = """The harbour was quiet in the early morning, and the boats lay still.
A small team can change a large system if it measures what it does.
It's not what they'd expected; we'll see what she's found, and I'm sure you've heard they're late.
IT'S LOUD HERE, ISN'T IT? WE'LL GO. THEY'VE GONE. I'M OFF. HE'D KNOW.
“Curly quotes,” she said — ‘and an em dash’ … don’t forget l’apostrophe.
Dr. Smith paid $1,234.56 (about €1.100,00) on 2024-02-29 at 09:05:07.
Version 1.2.3-rc.4+build.5 needs 16GB, 4k pages and 3.5% of 10^6 tokens.
The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX. tHe qUiCk bRoWn.
Gradient descent walks downhill; with a good step size it arrives.
She reads the letter twice, folds it, and puts it back in the drawer.
Low-rank updates: W' = W + (alpha/r)·BA, where r << min(m, n).
Is this a question? Yes! No?! Well... maybe -- or not.
e.g. i.e. etc. vs. a.m. p.m. U.S.A. Ph.D. No.5 #1 @home C++ C# F# .NET
email: someone@example.org, url: https://example.org/a/b?c=d&e=f#g-h_i%20j
~/.config/tool.d/*.conf and C:\\Program Files\\Tool\\bin\\tool.exe
underscore_names, camelCaseNames, PascalCaseNames, kebab-case-names, SCREAMING_SNAKE
HTTPServer2XMLParser parseURLToJSON i18n l10n a11y k8s x86_64 IPv6
1st 2nd 3rd 4th 21st 100th 3x 10x 0x1F 0b1010 0o17 1e-9 1_000_000 ½ ¾ ² ³ ₂ ①②③ ⅷ Ⅻ
12345678901234567890 007 3.14159265358979 1/2 50/50 24/7 9-5 +1 (555) 010-9999
one two  three   four    five     six      seven
 leading space
  two leading spaces and  1 two before a digit  22
trailing space 
trailing spaces   
don't can't won't shan't y'all o'clock rock'n'roll 'tis 'twas 's 't 're 've 'm 'll 'd
'S 'T 'RE 'VE 'M 'LL 'D x'Sy x's x'd'll
A
a
!
.
 
  
-
=====
----------------------------------------------------------------
!!!???!!!...,,,;;;:::###@@@$$$%%%^^^&&&***((()))
<<>>||&&++--==!=<=>===!==**//->=>::?.??""".split("\n")

CODE = [
    "def fib(n: int) -> int:\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n",
    "class A(B):\n\tdef __init__(self, *args, **kwargs):\n\t\tsuper().__init__(*args, **kwargs)  # tabs\n",
    "print(f\"{x!r:>10} {y:.3f}\", end='\\n')",
    "for (let i = 0; i < xs.length; i++) {\n  out.push(xs[i]! ** 2 ?? 0);\n}",
    "export const pick = <T, K extends keyof T>(o: T, ...ks: K[]): Pick<T, K> => Object.fromEntries(ks.map((k) => [k, o[k]])) as Pick<T, K>;",
    "const re = /(?<=\\s)\\p{L}+(?:'\\w+)?/giu; // regular expression",
    "#include <stdio.h>\r\n\r\nint main(void)\r\n{\r\n\tprintf(\"%d\\n\", 42);\r\n\treturn 0;\r\n}\r\n",
    "template <typename T, std::size_t N>\nconstexpr auto size(const T (&)[N]) noexcept { return N; }",
    "fn main() -> Result<(), Box<dyn Error>> {\n    let v: Vec<u8> = vec![0; 1 << 10];\n    println!(\"{:?}\", &v[..4]);\n    Ok(())\n}",
    "func (s *Server) Serve(ctx context.Context) error {\n\tselect {\n\tcase <-ctx.Done():\n\t\treturn ctx.Err()\n\t}\n}",
    "SELECT a.id, COUNT(*) AS n\nFROM t AS a LEFT JOIN u ON u.id = a.id\nWHERE a.name LIKE '%x%' GROUP BY 1 HAVING COUNT(*) > 10;",
    "<div class=\"a b\" data-x='1'>\n  <p>Hello &amp; <b>good&nbsp;bye</b></p>\n</div>",
    "{\"a\": [1, 2.5e-3, null, true], \"b\": {\"c\": \"\\u00e9\\n\"}}",
    "a: 1\nb:\n  - x\n  - y: [1, 2]\n    z: |\n      text\n      more\n",
    "#!/bin/sh\nset -eu\nfor f in *.txt; do wc -l \"$f\" | awk '{print $1}' >> out; done 2>/dev/null",
    "\\begin{equation}\n\\frac{\\partial L}{\\partial W} = \\sum_{i=1}^{N} x_i^\\top g_i\n\\end{equation}",
    "public static <T extends Comparable<? super T>> void sort(List<T> list) { list.sort(null); }",
    "x = lambda a, b=1: a if a else b  # noqa: E731\n\n\n\ny = 3\n",
    "if x:\n  y\n    z\n      w\n        v\n\t mixed\n \t indent",
    "@media (max-width: 600px) { .a > .b:hover::after { content: \"\\201C\"; } }",
    "docker run --rm -it -v \"$PWD\":/w -e A=1 image:tag sh -c 'ls -la /w'",
    "diff --git a/x b/x\n@@ -1,3 +1,4 @@\n-old\n+new\n context",
    "0123 4567  89ab   cdef\n0x0000: 48 65 6c 6c 6f 20 77 6f 72 6c 64",
    "| a | b |\n|---|:-:|\n| 1 | **2** |\n\n- [x] done\n- [ ] open\n\n```ts\nlet x = 1;\n```",
]

SCRIPTS = [
    "今天天气很好，我们去公园散步吧。", "繁體中文與簡體中文的差別：體/体、門/门、龍/龙。", "東京は夜の七時です。カタカナとひらがなと漢字。", "ｶﾀｶﾅ　ﾊﾝｶｸ　と　全角　スペース",
    "안녕하세요, 세계! 한국어 텍스트입니다.", "가각간갇갈", "中英mixed文字with数字123和标点！？", "１２３４５ ＡＢＣａｂｃ！？（）",
    "مرحبا بالعالم، هذا نص عربي.", "السَّلَامُ عَلَيْكُمْ ١٢٣٤٥", "שלום עולם, זה טקסט בעברית עם נִקּוּד", "سلام دنیا، این یک متن فارسی است: ۱۲۳ می‌خواهم",
    "नमस्ते दुनिया, यह हिन्दी में एक वाक्य है। १२३", "क्षत्रिय ज्ञान श्रीमान् कर्त्ता", "বাংলা ভাষায় লেখা একটি বাক্য।", "தமிழ் மொழியில் ஒரு வாக்கியம்.", "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "ພາສາລາວ ພາສາ", "မြန်မာဘာသာ", "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ",
    "Привет, мир! Это русский текст — с тире.", "ЁЖИК ёжик Ґанок їжак", "Γειά σου Κόσμε, ΌΛΑ ΚΑΛΆ; ς σ", "გამარჯობა მსოფლიო", "Բարեւ աշխարհ", "ሰላም ልዑል", "Xin chào thế giới, tiếng Việt có dấu: ắ ằ ẳ ẵ ặ",
    "İstanbul'da ışık, ığdır, İ i I ı", "Straße STRASSE ẞ ß ſ", "Ærøskøbing Łódź Ťažký žlutý kůň naïve façade Zürich", "œuvre Œ æ ﬁ ﬂ ﬃ ﬆ ŉ ǆ", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "ᠮᠣᠩᠭᠣᠯ", "བོད་སྐད་", "𐌰𐌽𐍃𐍄𐌰𐌹", "𒀀𒁀𒂀 𓀀𓁐𓂀", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒻𝓊𝓃 𝟘𝟙𝟚 𝛼𝛽", "𠀀𠮷𩸽 \U0002f801", "🄰🄱 🅐 ⓐ ⒜", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ∑∏∫√∞≠≤≥±×÷", "→←↑↓⇒⇔ ■□▲△ ♠♥♦♣ ☃☂☀", "░▒▓█▄▀ ┌─┬─┐│ │└─┴─┘", "¡Hola! ¿Qué tal? «guillemets» „unten“ 「括弧」『二重』",
    "\u00c5 vs A\u030a vs \u212b", "\u00e9 e\u0301", "n\u0303 \u00f1 u\u0308 \u00fc", "q\u0323\u0307 q\u0307\u0323 \u1ec7 e\u0323\u0302 e\u0302\u0323", "\uac01 \u1100\u1161\u11a8", "\u2126 \u03a9 \u212a K \u0958 \u0915\u093c", "Z̷̡̙a̸͖l̵̰g̷̱o̴̤ t̶e̸x̷t̵", "\u338f \u33a1 \u337f \u3314", "x⃗ y̅ 1️⃣ #️⃣", "\u0300leading combining mark", "\u0e33 leading Thai vowel",
]

EMOJI = [
    "😀😃😄😁", "👍👍🏻👍🏼👍🏽👍🏾👍🏿", "👨‍👩‍👧‍👦 family", "👩🏽‍💻 codes, 🧑🏿‍🚀 flies", "🏳️‍🌈 🏴‍☠️ 🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🇩🇪🇫🇷🇯🇵🇺🇳 🇩", "❤️ ❤ ♥︎ ☺️ ☺", "🫠🫡🫥 🪿", "a😀b 😀 c😀 😀😀", "I ❤️ 🍕!!! 🤷🏻‍♀️", "🧑‍🤝‍🧑👩‍❤️‍💋‍👨", "©️ ®️ ™ ℠", "⏱️⌚️⏰ 🕛🕧", ":-) :( ;P <3 ¯\\_(ツ)_/¯ (╯°□°）╯︵ ┻━┻",
]

SPACE = [
    "", " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\r", " \n", "\n ", " \n \n ", "\t \t", "a\tb", "a\t\tb", "a \tb", "a\nb", "a\n\nb", "a\n\n\n\nb", "a \n b", "a  \n  b", "a\r\nb\r\n", "a\rb",
    "a\u00a0b", "\u00a0", "\u00a0\u00a0a", "a \u00a0 b", "a\u2003b\u2009c\u200ad", "a\u3000b", "\u3000\u3000a", "a\u2028b\u2029c", "a\u0085b", "a\u200bb", "\u200b", "a\u200c\u200db", "a\u2060b", "\ufeffBOM first", "mid\ufeffdle", "a\u00adb soft\u00adhyphen",
    "a\u000bb\u000cc", "a\u001cb\u001fc", "bell\u0007 esc\u001b[31mred\u001b[0m del\u007f", "\u0001\u0002\u0003", "\u200e\u200f\u202aembedded\u202c \u2066isolated\u2069", "\ufffd replacement", "\u180eMongolian separator", "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
    "line one\nline two\n\tindented\n\n    four spaces\r\nwindows\rmac\n", "   \n   \n   x", "x\n   \n   ", "\n\n  1\n  22\n   333", "a    b     c", "word\n\n\nword", "  \t  \t  end",
]

SPECIAL = [
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_end|><|endoftext|>", "text<|im_end|>text", "text <|im_end|> text", "<|im_start|> <|im_start|>  <|im_end|>\n\n<|im_end|>",
    "<|im_start", "<|im_start|", "|im_start|>", "<|IM_START|>", "<| im_start |>", "<|im_start|>>", "<<|im_start|>", "<|im_<|im_end|>start|>", "<|endoftext|>", " <|endoftext|> ", "a<|endoftext|>", "<|endoftext|>a", "<|endoftext|>1  2<|endoftext|>",
    "<s>", "</s>", "<unk>", "<pad>", "<s>Hello</s>", "<s> Hello </s> <s>", "[CLS] a [SEP] b [SEP]", "[MASK] of [UNK]", "[INST] hi [/INST] ho </s>", "<<SYS>>\nx\n<</SYS>>", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "<|eot_id|><|eot_id|>",
    "<file_sep><filename>a.py<gh_stars>10<issue_start>", "<jupyter_code>x<empty_output>", "<think>\nhm\n</think>\n\nyes", "<start_of_turn>user\nhi<end_of_turn>", "<0x41><0x0A>", "▁ ▁▁ a▁b", "Ġ Ċ ĠĠ", "##ing ## a##b", "\\u0041 &#65; %41",
]

LONG = [
    "a" * 300, "ab" * 120, "0" * 100, "1234567890" * 12, "z" * 17 + " " + "Z" * 33, "." * 90, " " * 40 + "x", "x" + " " * 41, "\n" * 20, "\t" * 15 + "x", "ha" * 30 + "!", "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "acgtacgtggctaacgtagctagctagcatcgatcgatgcatgctagctagctagtcgatcgatgcatgcatgctagctagctgac", "pneumonoultramicroscopicsilicovolcanoconiosis" * 3, "的" * 50, "ก" * 40, "😀" * 20, "\u00e9" * 30, "e\u0301" * 15, "ﷺ" * 3, "_" * 70, "-=" * 40, "A1b2C3d4E5" * 8, "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogoch",
]

PLANES = [
    "\U000e0041\U000e0042 tag characters", "\ue000\uf8ff private", "\U000f0000\U0010fffd far planes", "\ufdd0\ufffe\uffff non-characters", "\U0001fbf0\U0001fbf9 segmented digits", "\U00020000\U0002a6df\U000323af ideographs", "\U0001d173 music \U0001d11e", "\u0378 unassigned", "\U0001f9ff\U0001fae8 newer emoji", "\ud7ff edge of the surrogates \ue000",
]


def mixtures(rng, n):
    """Returns fragments of all lines above, joined with unusual separators."""
    words = [w for line in ENGLISH for w in line.split() if len(w) < 14]
    pool = words * 3 + [s[:9] for s in SCRIPTS + EMOJI + SPACE + SPECIAL + PLANES if s] + [str(rng.randrange(10 ** k)) for k in range(1, 9)]
    seps = [" "] * 8 + ["", "", "  ", "\n", "\t", "\u00a0", ", ", "'s ", "-", "_", " \n", "   ", "<|im_end|>"]
    return ["".join(rng.choice(pool) + rng.choice(seps) for _ in range(rng.randint(2, 11))) for _ in range(n)]


def main():
    a = arguments(__doc__)
    rng = random.Random(500)
    lines = ENGLISH + CODE + SCRIPTS + EMOJI + SPACE + SPECIAL + LONG + PLANES
    lines += [unicodedata.normalize("NFD", s) for s in SCRIPTS if unicodedata.normalize("NFD", s) != s][:12]
    lines += mixtures(rng, 110)
    lines = [s.replace("\0", "") for s in lines]
    path = a.out / "tokenizer" / "corpus.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(s, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\u0085", "\\u0085")
                            .replace("\ufeff", "\\ufeff") + "\n" for s in lines), encoding="utf-8", newline="\n")
    assert [json.loads(x) for x in path.read_text(encoding="utf-8").split("\n")[:-1]] == lines
    print(len(lines), "lines", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
