"""Captions that were hardly meant to be any: what they look like, told by their form."""

from __future__ import annotations

import re
import unicodedata

_MEDIA = r"\.(?:mp4|mov|mkv|webm|avi|m4v|gif|png|jpe?g|webp|bmp|wav|flac|mp3|ogg|m4a|txt)"
_BROKEN = "UTF-8 that was taken for another encoding and saved", "write it anew"
_MANY = 8  # bytes, of which a few may have been lost
_SEEN = r"(?:image|video|picture|photo|clip|footage|content|file|audio)s?"
_REFUSALS = (
    r"^((I['\u2019]m|I am) (really |very )?sorry,? (but )?)?"
    r"(I (cannot|can['\u2019]t)|I(['\u2019]m| am) (unable|not able) to) "
    r"((assist|help)( you)? with (that|this|identifying)\b|identify (the |any )?(people|persons|individuals)\b"
    r"|(describe|view|see|provide|analy[sz]e|process)\b.*\b((description|caption|request)s?\b|"
    rf"{_SEEN}\b(?! (game|on|behind|hanging)))|describe( this| that)?\.?$)",
    r"^((I['\u2019]m|I am) )?(really |very )?(sorry|unfortunately),? (but )?I (cannot|can['\u2019]t|am unable to) "
    r"(help|assist|describe|analy[sz]e|process)( with)?( this| that)?( request)?\.?$",
    rf"^I (do not|don['\u2019]t) have the (ability|capability) to (view|see|watch|process|analy[sz]e) .*{_SEEN}\b",
    rf"^There (is|was) no {_SEEN} (attached|provided|uploaded|given)\b",
    rf"^Please (provide|upload|attach)( me)? (the|an?|your) {_SEEN}\b",
    r"^As an AI( language)? (model|assistant|system)(,|\b.*\bI\b)",
    r"^(I apologize|My apologies),? (but )?I (cannot|can['\u2019]t|am unable to|am not able to|could not) "
    r"(describe|assist|view|identify|provide|fulfil+|process|caption|analy[sz]e)\b",
    rf"^I (do not|don['\u2019]t|cannot|can['\u2019]t) see (any|an|the) {_SEEN} "
    r"(attached|provided|uploaded|here|in (this|your))\b",
    rf"^(It (seems|appears|looks like)( that)? )?(the|no|your) {_SEEN} "
    r"(did not|didn['\u2019]t|has not|could not|failed)"
    r"( be| to| been)* (load|loaded|upload|uploaded|attached|provided|shown)(?=[.!,;]|$)",
    r"^As a (large )?language model\b",
    r"^Als (KI|Sprachmodell)\b.*\b(kann|bin|habe|darf) ich\b|^Als Sprachmodell\b",
    r"^(Es )?tut mir leid, (aber )?ich kann .*(Bild|Video|Anfrage|beschreiben)",
    r"^En tant qu['\u2019](IA|intelligence artificielle)\b",
    r"^(Je suis )?d\xe9sol\xe9e?, (mais )?je ne (peux|suis) .*(d\xe9crire|image|vid\xe9o)",
    r"^Como (una )?(IA|inteligencia artificial|modelo de lenguaje)\b|^Como um modelo de linguagem\b",
    r"^Lo siento, (pero )?no puedo .*(describir|imagen|v[i\xed]deo|solicitud)",
    r"^(Извините|К сожалению), .*не могу .*(видео|изображени|картинк|фото|запрос)",
    r"^作为.{0,4}(AI|人工智能|语言模型).*我.*(无法|不能)",
    r"^(很|非常)?(抱歉|对不起).{1,9}(无法|不能).{0,9}(视频|图片|图像|照片|影像|内容|请求)",
    r"^申し訳.*(画像|動画|映像|ビデオ|リクエスト).*(できません|できかねます)",
)
# What a caption is that nobody wrote as one, told by how it begins or by a mark in it, and what to do.
_FORMS = (
    (re.compile(r"^\{\\rtf\d"), "rich text (RTF)", "save it as plain text"),
    (
        re.compile(
            r"\d\d:\d\d[.,]\d{3} --> |^\[\d\d:\d\d\.\d\d\d?\]|^\[Script Info\]"
            r"|^(Dialogue|Comment): \d+,\d+:\d\d:\d\d\.\d\d,|^WEBVTT\b"
        ),
        "subtitles",
        "leave the numbers and times out",
    ),
    (re.compile(r'^[{\[]\s*(?:\{\s*)?"[^\n]*[}\]]$'), "JSON", "write the text alone"),
    (re.compile(r"^<(!doctype|html|\?xml)\b", re.IGNORECASE), "a web page", "save its text alone"),
    (
        re.compile(r"^(subtitles by|thank(s| you) (so much )?for watching)\b[^,]{0,40}$", re.IGNORECASE),
        "what a transcriber writes for silence",
        "write what is heard",
    ),
    (re.compile(r"^%PDF-\d"), "a PDF", "save its text alone"),
    (re.compile(r"^[\[({]\s*'(?:[^']*'\s*[\])}]|.*'\s*[,:].*[\])}])$"), "a value of Python", "write the text alone"),
    (re.compile(r"^b(['\"]).*\1$"), "a value of Python", "write the text alone"),
    (
        re.compile(r"^--- \w+: |^\[\w+\] \w+ ?= ?\S|^(caption|text|prompt|description) ?= ?\S", re.IGNORECASE),
        "a line of settings",
        "write the text alone",
    ),
    (
        re.compile(rf"^\S+{_MEDIA}( ?[,;|] ?|: ?| (?=\"))\S", re.IGNORECASE),
        "a line of a list of files",
        "write the caption alone",
    ),
    (
        re.compile(
            r"^(?:(?:IMG|DSCN?|DSCF|VID|MVI|PXL|GOPR|GX|PICT)[_-]?|(?:Screenshot|WhatsApp (?:Image|Video))[_ -])"
            r"\d{3,}(?:[\d .,:_()-]|WA\d+|\bat\b|\b[AP]M\b)*$"
            rf"|^[\w.-]+(?: [\w.-]+| \(\d+\))?{_MEDIA}$",
            re.IGNORECASE,
        ),
        "the name of a file",
        "write the caption",
    ),
    (
        re.compile(r"^(?:https?://\S+|(?:[A-Za-z]:)?[^\s\"']*[\\/][^\s\"']*\.\w{2,4})$"),
        "a path or an address",
        "write the caption",
    ),
    (
        re.compile(r"^#+ "),
        "a remark or a heading",
        "take it out, or leave its sign out where it is a caption",
    ),
    (
        re.compile(r"^[-*\u2022] |^\d{1,2}[.)] (?=[a-z]|An? |The |In )"),
        "an entry of a list",
        "leave its sign out",
    ),
    (
        re.compile(r"^\*\*[^*]{1,40}(?:: ?\*\*|\*\* ?:)|(?<!\w)\*\*[^*\s](?:[^*]*[^*\s])?\*\*(?!\w)"),
        "Markdown",
        "leave its signs out",
    ),
    (
        re.compile(r'\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\".*\\"|[a-z]%20[a-z]', re.IGNORECASE),
        "text with the escapes of a program",
        "write the signs themselves",
    ),
    (
        re.compile("\ufffd|^\\?{3,}(?=\\s|$)|\\?{3,}\\s+\\?{2,}"),
        "text that lost letters when it was saved",
        "write them again",
    ),
    (
        # within a word, since a capital may well stand before a quotation mark or a sign
        re.compile("(?<=[a-z])[\xc2\xc3][\x80-\xbf]|[\xc2\xc3][\x80-\xbf](?=[a-z])|\xe2\u20ac"),
        *_BROKEN,
    ),
    (
        re.compile(
            r"</?think>|<\|\w+\|>|<(start|end)_of_(turn|image)>|<(bos|eos|pad|unk|image_soft_token)>|</?s>|\[/?INST\]|```"
        ),
        "the inner words of a captioner",
        "leave them out",
    ),
    (
        re.compile(
            r"^(system )?You are an? ((helpful|expert|video|image|vision) )+(assistant|AI|captioner|model)\b"
            r"|\buser: .*\bassistant: ",
            re.IGNORECASE,
        ),
        "the talk with a captioner",
        "leave its caption alone",
    ),
    (
        re.compile(
            rf"^(please )?(describe|caption|summari[sz]e) (this|the) {_SEEN}( in (great )?detail| in \w+ \w+)?[.:!]?$"
            r"|^(please )?(write|generate|create|provide|give me) (a|an|the) ([\w-]+ ){0,2}(caption|description) "
            rf"(for|of) (this|the) {_SEEN}\b",
            re.IGNORECASE,
        ),
        "what a captioner is asked",
        "write the caption",
    ),
    (
        re.compile(
            r"^(assistant|caption|output|response|prompt|description|answer|option \d|short|long):\s"
            r"|^title: .* description: "
            r"|^(certainly|absolutely|of course)! (here|(the|this) (video|image|picture|clip)|below)\b"
            r"|^(okay|ok|got it|alright), (the user (wants|asks|asked|needs|has)|let me (look|think|see|start))\b"
            r"|\bI hope this (helps|description|caption)\b[^,]{0,40}$"
            r"|\blet me know if you(['\u2019]d| would)? (need|like|want|have) (any|me|a|more|it|this)\b[^,]{0,60}"
            r"\b(chang|edit|revis|adjust|detail|shorter|longer|version|caption|description|modif)"
            r"|\bwould you like me to (make|revise|shorten|expand|adjust|change|rewrite|describe|provide|add)\b"
            r"|^((sure|certainly|of course|absolutely)[!,.] )?here(['\u2019]s| is) (a|an|the|your)\b[^.:]*"
            r"\b(caption|description)( (for|of) (the|this|your) \w+)?:",
            re.IGNORECASE,
        ),
        "the talk of a captioner around its caption",
        "leave the caption alone",
    ),
    (
        re.compile(
            r"^(?-i:TODO (?:describe|caption|write|fix|add|fill))\b"
            r"|^(?:nan|none|null|undefined|n/a|(?-i:TODO)|tbd|no caption|placeholder"
            r"|caption here|your caption( here)?)\.?$"
            r"|^(?-i:TODO|FIXME|TBD):|^lorem ipsum\b",
            re.IGNORECASE,
        ),
        "what a program writes for nothing",
        "write the caption",
    ),
    (
        re.compile(
            r"^(\w*Error: |Traceback |CUDA (error|out of memory)|Rate limit (reached|exceeded)|Error code: \d"
            r"|HTTP \d{3} (error|[A-Z][a-z]+)$"
            r"|Connection (error|refused|reset)|Request timed out|Internal server error)",
            re.IGNORECASE,
        ),
        "an error of a program",
        "write the caption",
    ),
    (
        re.compile(r"&(amp|nbsp|lt|gt|quot|apos|#\d+);|</?(p|br|div|span|strong|em)\b[^<>]*>", re.I),
        "HTML",
        "save its text alone",
    ),
    (re.compile(r"<{7} |>{7} |(?:^| )={7} "), "two versions of a text that git could not join", "keep one"),
    (
        re.compile(
            rf"^(?!.*(?:, (?:[\w']+ ){{0,3}}sa(?:ys|id)\b|\bsa(?:ys|id),|говорит))(?:{'|'.join(_REFUSALS)})",
            re.IGNORECASE,
        ),
        "the refusal of a captioner",
        "write the caption",
    ),
)
# The same of marks that may well be seen in a picture: what is quoted is passed over.
_QUOTED = re.compile(r"\"[^\"]*\"|\u201c[^\u201d]*\u201d")
_SIGNS = (
    (
        re.compile(r"^(?!.*\b[A-Za-z]:\\).*\\[nrt](?![a-z]*\\)"),
        "text with the escapes of a program",
        "write the signs themselves",
    ),
    (
        re.compile(r"\[(?:[Tt]rigger|TRIGGER|name|filewords)\]|[{<](trigger|caption|token)[}>]|\{\{\w+\}\}"),
        "a placeholder, and nothing fills it in",
        "take it out; trigger_word puts a word before each caption",
    ),
    (
        re.compile(
            r"<lora:|\|\|\||, BREAK\b|\bBREAK,|(?<!\S)--(?:w|h|d|n|f|g|s|ar|v|no|seed|stylize) (?=\S)"
            r"|\([^()]+(?<!\d):\d\.\d+\)|\{[^{}|]+(\|[^{}|]+)+\}"
            r"|(?<!\S)__(?!(?:init|main|name|file|call|str|repr|len|iter|next|new|del|dict|doc|all)__)\w+__(?!\w)"
            r"|\bNegative(?: prompt)?: |\(Word count: \d+\)|\bSteps: \d+, Sampler: "
        ),
        "a prompt with signs of other programs, which are words here",
        "write plain words",
    ),
)


_READ = 4000  # letters of a caption that are looked at
# what may well be said by somebody in a picture: what is quoted is passed over, too
_SAID = ("the talk of a captioner around its caption", "the refusal of a captioner")

# letters that stand for bytes of UTF-8 where it was read as a Windows code page, or as the Chinese one
_PAGES = (
    (
        "cp1252",
        re.compile(
            "[\x80-\xff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2010-\u203a\u20ac\u2122]{4,}"
        ),
    ),
    ("cp1251", re.compile("[\xa0-\xbb\u0401-\u045f\u0490\u0491\u2010-\u203a\u20ac\u2116\u2122]{4,}")),
    ("gbk", re.compile("[\u3100-\u312f\u3400-\u9fff]{8,}")),
)


def odd_form(caption: str) -> str:
    """What a caption looks like that was hardly meant to be one, and what to do; or ""."""
    look = odd_look(caption)
    return "" if look is None else f"looks like {look[0]}; {look[1]}"


def odd_look(caption: str) -> tuple[str, str] | None:
    """The same as two texts; None where it is a caption."""
    plain = _QUOTED.sub("", caption[:_READ])
    head = caption[:_READ]
    found = [(what, mend) for form, what, mend in _FORMS if form.search(plain if what in _SAID else head)]
    found += [(what, mend) for form, what, mend in _SIGNS if form.search(plain)]
    if not found and was_misread(caption):
        found.append(_BROKEN)
    if not found and not any(one.isalnum() or unicodedata.category(one) == "So" for one in caption):
        found.append(("signs alone, without a word", "write the caption"))
    return found[0] if found else None


def was_misread(text: str) -> bool:
    """Whether letters in `text` are UTF-8 that was read as another encoding: they can be read back, or most of many."""
    for page, run in _PAGES:
        for found in run.finditer(text):
            data = found[0].encode(page, "ignore")
            back = data.decode("utf-8", "ignore").encode()
            if back and (back == data if len(data) < _MANY else len(back) >= 0.8 * len(data)):
                return True
    return False
