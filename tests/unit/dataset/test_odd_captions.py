"""What captions look like that were hardly meant to be any, and that right ones are told nothing."""

import media
import pytest

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.odd_captions import odd_form
from ltx2_train.dataset.plan import plan_dataset


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("{\\rtf1\\ansi a fox}", "rich text (RTF); save it as plain text"),
        ("%PDF-1.4 1 0 obj", "a PDF; save its text alone"),
        ("a f\ufffdx", "text that lost letters when it was saved; write them again"),
        ("a fox \xc3\xbcber", "UTF-8 that was taken for another encoding and saved; write it anew"),
        ("1\n00:00:01,000 --> 00:00:02,500\na fox\n", "subtitles; leave the numbers and times out"),
        ('{"caption": "a fox"}', "JSON; write the text alone"),
        ("<html><p>a fox", "a web page; save its text alone"),
        ("<think>a fox?</think> a fox", "the inner words of a captioner; leave them out"),
        *(
            (text, "the inner words of a captioner; leave them out")
            for text in (
                "a fox<|im_end|>",
                "a fox<end_of_turn>",
                "<bos>a fox",
                "[INST] describe [/INST] a fox",
                "a fox</s>",
            )
        ),
        *(
            (text, "what a program writes for nothing; write the caption")
            for text in ("nan", "None", "null", "No caption.")
        ),
        *(
            (text, "the talk of a captioner around its caption; leave the caption alone")
            for text in (
                "ASSISTANT: a fox",
                "Sure! Here is a caption: a fox",
                "Certainly! Here it is: a fox",
                "Here's a caption for the video: a fox",
            )
        ),
        *(
            (text, "a placeholder, and nothing fills it in; take it out; trigger_word puts a word before each caption")
            for text in ("[trigger] a fox", "{caption}", "a {{name}} runs")
        ),
        *(
            (text, "a prompt with signs of other programs, which are words here; write plain words")
            for text in (
                "<lora:fox:0.8> a fox",
                "(a fox:1.3) runs",
                "a {red|grey} fox",
                "a __colour__ fox",
                "ohwx ||| a fox",
                "a fox --w 512 --d 4",
            )
        ),
        *(
            (text, "a path or an address; write the caption")
            for text in ("clips/b.txt", "C:\\d\\fox.mp4", "https://a.b/c")
        ),
        ("['a fox runs']", "a value of Python; write the text alone"),
        *((text, "an entry of a list; leave its sign out") for text in ("- a fox", "1. a fox")),
        ("# not this", "a remark or a heading; take it out, or leave its sign out where it is a caption"),
        ("[00:01.00]a fox", "subtitles; leave the numbers and times out"),
        ("a fox BREAK, a wolf", "a prompt with signs of other programs, which are words here; write plain words"),
        *(
            (text, "")
            for text in (
                'A sign that says "BREAK TIME" in red',
                "A code editor shows __init__ method",
                'A screen with "[name]" on it',
                "[NAME] speaks",
                "Here's a caption on screen: stop",
                "Sure, a man stands there and reads a caption.",
                "('80s style) a man dances ('90s)",
            )
        ),
        ("a fox runs and/or jumps. At 1:1.5 scale (a fox), [a wolf] | a break", ""),
        ("Error: CUDA out of memory", "an error of a program; write the caption"),
        ("a fox &amp; a wolf", "HTML; save its text alone"),
        ("<<<<<<< HEAD a fox", "two versions of a text that git could not join; keep one"),
        ("Here is a fox. Of course, it runs & jumps; none sees a banana", ""),
        ("I\u2019m sorry, but I can\u2019t help with that.", "the refusal of a captioner; write the caption"),
        ("I cannot assist with this image.", "the refusal of a captioner; write the caption"),
        ("A woman says: \"I'm sorry, I can't stay.\"", ""),
        ("I'm sorry, but I have to leave you now.", ""),
        ("I can't help falling in love with you", ""),
        ("I can't see you anymore", ""),
        *(
            (text, "the refusal of a captioner; write the caption")
            for text in (
                "I'm sorry, but I can't view images or videos.",
                "I'm sorry, I am unable to process the request",
                "I\u2019m not able to provide descriptions of people.",
                "I can't help with identifying people in images.",
            )
        ),
        ("I cannot describe this image.", "the refusal of a captioner; write the caption"),
        ("{a fox} runs [slowly] 10:00 --> 11:00, <b>fast</b>", ""),
        ("I see a fox; version 2 of it", ""),
    ],
)
def test_what_is_hardly_a_caption_is_named(tmp_path, caption, said):
    media.write_image(tmp_path / "a.png", 64, 64, caption)
    media.write_image(tmp_path / "b.png", 64, 64, "a wolf")
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [{"image_directory": "."}]}, tmp_path))
    told = [warning for warning in plan.warnings if "looks like" in warning]
    assert told == ([f"datasets[0]: a.txt: the caption looks like {said}."] if said else [])


@pytest.mark.parametrize("text", ["a placa «MAÇÃ»", "IRMÃ® e AMANHÃ™", "«Â» est une lettre", "chữ «Â» và “Ô”"])
def test_capitals_before_signs_are_no_wrong_encoding(text):
    assert odd_form(text) == ""


@pytest.mark.parametrize("text", ["un café noir", "el niño", "Käfer", "it’s"])
def test_a_caption_that_was_encoded_twice_is_told(text):
    assert "taken for another encoding" in odd_form(text.encode().decode("cp1252"))


@pytest.mark.parametrize(
    ("caption", "what"),
    [
        *(
            (text, "the refusal of a captioner")
            for text in (
                "Sorry, I can't help with that.",
                "Unfortunately, I cannot help.",
                "I'm unable to identify people in images. She wears red.",
                "I don't have the ability to view videos.",
                "There is no video attached.",
                "Please upload the image you would like me to describe.",
                "I cannot describe",
                "Als KI kann ich das nicht sehen.",
                "Lo siento, pero no puedo describir esta imagen.",
                "К сожалению, я не могу описать это видео.",
                "作为一个AI助手，我无法查看视频",
                "抱歉，我无法描述这个视频。",
                "申し訳ありませんが、この画像は説明できません。",
            )
        ),
        ("Describe this video in detail.", "what a captioner is asked"),
        ("Write a detailed caption for this video", "what a captioner is asked"),
        ("You are a helpful assistant. user: describe. assistant: a fox", "the talk with a captioner"),
        *(
            (text, "text with the escapes of a program")
            for text in ("a fox\\nruns", 'a \\"red\\" fox', "the fox\\u2019s tail", "caf\\xe9", "a%20fox")
        ),
        ("b'a fox'", "a value of Python"),
        ('caption = "a fox"', "a line of settings"),
        ("[caption] text=a fox", "a line of settings"),
        ("a.mp4,a fox runs", "a line of a list of files"),
        ("Dialogue: 0,0:00:00.00,0:00:01.00,a fox", "subtitles"),
        ("WEBVTT a fox", "subtitles"),
        ("**Caption:** a fox", "Markdown"),
        ("a **red** fox", "Markdown"),
        ("????", "text that lost letters"),
        ("IMG_2034", "the name of a file"),
        ("my fox.mp4", "the name of a file"),
        ("TODO: write it", "what a program writes for nothing"),
        ("...", "signs alone, without a word"),
        *(
            (text.encode().decode(page, "ignore"), "UTF-8 that was taken for another encoding")
            for text, page in (
                ("狐狸在雪地里奔跑", "cp1252"),
                ("狐狸在雪地里奔跑着", "gbk"),
                ("лиса бежит по снегу", "cp1252"),
                ("лиса бежит по снегу", "cp1251"),
            )
        ),
    ],
)
def test_what_programs_leave_in_captions_is_told(caption, what):
    assert odd_form(caption).startswith(f"looks like {what}")


@pytest.mark.parametrize(
    "caption",
    [
        "I'm sorry, he says",
        "I can't help it",
        "I cannot describe how happy she is",
        "There is no image on the screen",
        "Please send the picture, she says",
        "Describe the fox to her, she nods",
        "Als Kind läuft er",
        "2. Weltkrieg, Soldaten marschieren",
        "Todo",
        "I can't see a thing in this video game",
        "I cannot see the picture on the wall",
        "As an AI assistant robot rolls in, people cheer",
        "Als KI verkleidet tanzt er",
        "TODO EL MUNDO BAILA",
        "Quoi ??? dit-il",
        "He opens the file fox.mp4",
        "You are a shop assistant, she says",
        "Sorry, I can't help you",
        "抱歉，我不能来",
        "作为人工智能研究者，她微笑",
        "申し訳ございませんが、お受けできません",
        "К сожалению, я не могу прийти",
        "Todo el mundo baila",
        "None of them sees the fox",
        "What??? he shouts",
        "f**k and s**t, 2 ** 3",
        "He types C:\\new\\temp into a box",
        "AC\\DC on a shirt",
        "A file named fox.mp4 on a screen",
        "img 2",
        "\U0001f98a",
        "été à l'hôtel — “très” ‘bien’… 500€–600€",
        "Ёлка и ёж, її їжак, Різдво",
        "繁體字測試，狐狸在雪地裡奔跑的時候非常開心",
        "漢字仮名交じり文、雪の中を走る狐",
        "여우가 눈 속을 달린다",
        "Việt Nam đường phố, źdźbło żółć, Größe",
    ],
)
def test_a_right_caption_is_told_nothing(caption):
    assert odd_form(caption) == ""


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("I apologize, but I cannot describe this image because it shows people.", "refusal"),
        ("I don't see any image attached. Could you please share it again?", "refusal"),
        ("It seems that the image did not load.", "refusal"),
        ("A fox runs. I hope this helps!", "talk"),
        ("A fox. Let me know if you need any changes!", "talk"),
        ("Okay, the user wants a caption.", "talk"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "an error of a program"),
        ("Screenshot 2024-05-01 at 10.11.12 AM", "the name of a file"),
        ("IMG-20240501-WA0003", "the name of a file"),
        ("fox.png: a fox", "a line of a list of files"),
        ("Thank you for watching!", "what a transcriber writes for silence"),
        ("Subtitles by the Amara.org community", "what a transcriber writes for silence"),
        ("A fox. Let me know if you want it shorter!", "talk"),
        ("A fox runs. Negative: blurry", "signs of other programs"),
        ("A fox runs. (Word count: 3)", "signs of other programs"),
        ("--- title: fox --- a fox", "a line of settings"),
        ("TODO describe the fox", "what a program writes for nothing"),
    ],
)
def test_more_of_what_captioners_and_programs_leave(caption, said):
    assert said in odd_form(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "I apologize, but I can't stay, she says.",
        "The image did not fade, and the fox runs.",
        "Okay, a man says, and turns.",
        "A man shouts: absolutely! and runs",
        "Let me know, she says, and leaves",
        "A sign reads Error; a fox walks by -- slowly",
        "A system user meets a model",
        '"Let me know if you need anything," the waiter says',
        '"Would you like me to dance?" He smiles.',
        "Would you like me to dance? a man asks",
        '"I hope this helps," she says.',
        "Of course! A girl laughs",
        "Thank you for watching him, she says, and leaves the theatre with a dog and a bag",
        "HTTP 404 glows in neon",
        "TODO list on a fridge",
        "fox.png in the snow",
        "GX460 driving through mud",
        "Screenshot 2024 of a game",
        "The image failed to load on his phone",
        "OK, the user taps on the phone",
        "The video was not shown to the jury",
        "I can't see the video screen from here, a woman says to her friend.",
    ],
)
def test_right_captions_that_are_near_them_are_told_nothing(caption):
    assert odd_form(caption) == ""
