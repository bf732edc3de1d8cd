"""docs/drawing.md: its examples are accepted, its defaults are the request's, its “here” is tested.

Each check is a function from the page's text to a list of complaints, with a control below it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.schemas.content import GenerateIn
from app.schemas.inputs.words import EmbeddingUse, StyleIn, WildcardIn
from sdxl_contract.drawing.controls import Canny, Control
from sdxl_contract.drawing.hires import Hires
from sdxl_contract.drawing.references import Reference
from sdxl_contract.errors import ContractError
from sdxl_contract.pictures import Inpaint, PictureRef
from sdxl_contract.prompts.words import EmbeddingRef
from sdxl_contract.request import GenerateRequest, parse_request
from testkit.documents import REPOSITORY, code_blocks, files, inline_codes, prose, table_rows

PAGE = (REPOSITORY / "docs/drawing.md").read_text(encoding="utf-8")
Check = Callable[[str], list[str]]

# What an inline example is an example of, by the names in it.
INLINE: dict[frozenset[str], type[BaseModel]] = {
    frozenset({"url", "sha256"}): PictureRef,
    frozenset({"url", "token", "sha256"}): EmbeddingRef,
    frozenset({"low", "high"}): Canny,
    frozenset({"name"}): EmbeddingUse,
    frozenset({"embedding_id"}): EmbeddingUse,
}
# The path that a curl example calls, and what it takes there.
CALLS: dict[str, type[BaseModel]] = {
    "/content/generate": GenerateIn,
    "/words/styles/": StyleIn,
    "/words/wildcards/": WildcardIn,
}
# The heading of a table of fields, and the model that has them.
TABLES: dict[str, type[BaseModel]] = {
    "`inpaint`": Inpaint,
    "`hires`": Hires,
    "`controls[]`": Control,
    "`references[]`": Reference,
}
# Of a dotted setting: whose field it is.
OWNERS: dict[str, type[BaseModel]] = {"": GenerateRequest, "inpaint": Inpaint, "hires": Hires}


# --- examples ---------------------------------------------------------------------------------


def filled_in(text: str) -> str:
    """An example whose reader has something of their own to put where it says `…`."""
    text = re.sub(r'"url": …', '"url": "https://example.org/file"', text)
    text = re.sub(r'"sha256": …', f'"sha256": "{"0" * 64}"', text)
    return re.sub(r'("\w*id": )(?:…|"\w+…")', rf'\g<1>"{uuid.UUID(int=1)}"', text)


def examples(text: str) -> list[tuple[str, str]]:
    """(where, JSON) of every example: blocks, what curl sends, and objects within sentences."""
    found = [("", block) for language, block in code_blocks(text) if language == "json"]
    for language, block in code_blocks(text):
        for call in re.split(r"^curl ", block, flags=re.MULTILINE) if language != "json" else ():
            for body in re.findall(r"-d '(\{.*?\})'", call, re.DOTALL):
                [url] = re.findall(r"http://\S+/api/v1(/\S+)", call)
                found.append((url, body))
    found += [("inline", code) for code in inline_codes(text) if re.search(r'"\w+": ', code)]
    return found


def as_the_worker_gets_it(asked: dict[str, Any]) -> str:
    """A content's request in the worker's words: pictures by URL, no styles, no kept files."""
    text = json.dumps({k: v for k, v in asked.items() if k not in ("styles", "embeddings")})
    return re.sub(r'\{"image_id": "[^"]+"\}', '{"url": "https://example.org/file"}', text)


def refused_examples(text: str) -> list[str]:
    complaints = []
    for where, example in examples(text):
        try:
            value = json.loads(filled_in(example if example[0] == "{" else f"{{{example}}}"))
            model = next((CALLS[path] for path in CALLS if where.startswith(path)), None)
            if model is None:
                model = INLINE.get(frozenset(value), GenerateIn) if where else GenerateIn
            if model is GenerateIn and where == "inline":  # a field of a request, shown alone
                value = {"prompt": "a lemon", "image": {"image_id": str(uuid.UUID(int=1))}} | value
            model.model_validate(value)
            if model is GenerateIn:
                parse_request(as_the_worker_gets_it(value)).check_prompts()
        except (ValueError, ContractError) as error:
            complaints.append(f"{example} is refused: {error}")
    return complaints


# --- defaults ---------------------------------------------------------------------------------


def wrong_defaults(text: str) -> list[str]:
    """Fields in a table of fields that the model does not have, or has with another default."""
    complaints: list[str] = []
    shown: set[str] = set()
    model: type[BaseModel] | None = None
    for row in table_rows(text):
        if row[1] == "default":
            model = TABLES.get(row[0])
            shown.add(row[0])
        elif not row[0].startswith(("`", "-")):
            model = None  # another table
        elif model is not None and row[0].startswith("`"):
            names = re.findall(r"`(\w+)`", row[0])
            each = row[1].split(", ") if row[1].count(", ") == len(names) - 1 else [row[1]]
            for name, said in zip(names, each * (len(names) // len(each)), strict=True):
                found = default_of(model, name)
                if said.strip("`") not in found:
                    complaints.append(f"{name} is {' or '.join(found)} and said to be {said}")
    return complaints + [f"there is no table {name}" for name in TABLES.keys() - shown]


def default_of(model: type[BaseModel], name: str) -> list[str]:
    """A field's default in the page's words."""
    field = model.model_fields.get(name)
    if field is None:
        return [f"no field of {model.__name__}"]
    if field.is_required():
        return ["required"]
    if field.default is None:  # what stands for it is another's: the first pass's, the drawing's
        return ["none", "the first pass's", *(["original"] if name == "fill" else [])]
    if isinstance(field.default, float):
        return [f"{field.default:g}"]
    return [json.dumps(field.default).strip('"')]


# --- here -------------------------------------------------------------------------------------

# Each row of “What there is here”, and the tests that show what its cell of ours says.
SHOWN_BY = {
    "a LoRA by URL or upload": [
        "test_a_lora_changes_the_picture_and_leaves_nothing_behind",
        "test_a_url_works_in_a_dialects_call_and_as_data",
        "test_two_hundred_random_loras_leave_no_trace",
    ],
    "weights of words": [
        "test_brackets_are_the_weights_they_stand_for",
        "test_break_joins_windows_that_know_nothing_of_each_other",
        "test_a_swap_draws_what_the_loop_draws_with_the_words_swapped_by_hand",
    ],
    "textual inversion": [
        "test_a_picture_by_an_embedding_is_the_real_word_s_and_leaves_a_clean_model",
        "test_an_embedding_is_uploaded_meant_by_its_word_and_removed",
    ],
    "styles; wildcards": [
        "test_styles_stand_around_the_prompts_in_their_order",
        "test_the_seed_draws_the_lines_and_the_same_seed_the_same",
    ],
    "over a picture": [
        "test_the_less_is_drawn_the_more_is_the_source_s",
        "test_every_sampler_draws_from_a_source_with_diffusers_own_bits",
    ],
    "in part": [
        "test_every_sampler_inpaints_with_diffusers_own_bits",
        "test_the_mask_s_surroundings_are_enlarged_to_the_drawing_and_put_back",
    ],
    "greys of a mask": ["test_a_darker_grey_of_a_soft_mask_is_let_go_later"],
    "outside the mask": ["test_outside_the_mask_every_byte_is_the_source_s"],
    "beside a picture": [
        "test_an_outpainting_draws_its_borders_and_the_overlap_and_keeps_the_rest",
        "test_an_outpainting_keeps_the_source_where_it_was",
    ],
    "a network made for inpainting": [
        "test_a_model_that_was_made_for_inpainting_is_refused_by_its_channels"
    ],
    "second pass": [
        "test_a_second_pass_is_what_diffusers_draws_by_hand",
        "test_a_second_pass_gets_its_own_words",
    ],
    "enlarging by a network": [
        "test_over_http_a_picture_is_enlarged_and_nothing_drawn",
        "test_a_folder_s_usable_files_are_listed_by_name_and_hash",
    ],
    "enlarging by drawing tiles": ["test_an_upscaling_asks_for_no_steps"],
    "ControlNet, several": [
        "test_two_controlnets_give_diffusers_own_bits",
        "test_each_part_of_a_control_shows",
    ],
    "ControlNet-Union": [
        "test_a_union_gives_diffusers_own_bits",
        "test_a_t2i_adapter_gives_diffusers_own_bits",
    ],
    "maps of edges": [
        "test_edges_are_where_a_square_s_sides_are",
        "test_what_is_not_here_is_refused_by_its_name",
    ],
    "IP-Adapter, plus": [
        "test_an_adapter_gives_diffusers_own_bits",
        "test_each_part_of_a_reference_shows",
    ],
    "FaceID, InstantID": ["test_a_folder_s_usable_adapters_are_listed"],
    "regions of the picture": ["test_what_is_not_here_is_refused_by_its_name"],
    "PAG, FreeU": ["test_what_is_not_here_is_refused_by_its_name"],
    "refiner": ["test_what_is_not_here_is_refused_by_its_name"],
    "grids of two parameters": [
        "test_each_cell_has_its_values_and_all_else_is_the_same",
        "test_a_grid_is_labelled_and_downloads_as_one_picture",
    ],
    "settings in the file": [
        "test_png_info_reads_what_the_worker_writes",
        "test_a_dropped_picture_s_file_gives_the_same_picture_again",
    ],
    "the same request": ["test_the_same_request_gives_the_same_bytes"],
    "a signed manifest": [
        "test_a_png_without_its_manifest_is_the_picture_that_was_signed",
        "test_a_watermarked_picture_is_found_and_drawn_again_exactly",
    ],
}


def sections(text: str) -> dict[str, str]:
    """Text below each second heading."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def untested_cells(text: str) -> list[str]:
    """Rows of the comparison without a test, and tests without a row or that are not there."""
    rows = list(table_rows(sections(text)["What there is here, and elsewhere"]))[2:]
    source = "\n".join(
        (REPOSITORY / name).read_text(encoding="utf-8")
        for name in files()
        if re.search(r"(^|/)test_\w+\.py$", name)
    )
    complaints = [
        f"no test shows what is said of: {row[0]}"
        for row in rows
        if not any(row[0].startswith(start) for start in SHOWN_BY)
    ]
    for start, tests in SHOWN_BY.items():
        if not any(row[0].startswith(start) for row in rows):
            complaints.append(f"no row is about: {start}")
        complaints += [f"there is no {test}" for test in tests if f"def {test}(" not in source]
    return complaints + [f"{row[0]} has {len(row)} cells" for row in rows if len(row) != 6]


def unknown_settings(text: str) -> list[str]:
    """Fields in the first column of the other table that a request does not have."""
    complaints = []
    for row in list(table_rows(sections(text)["What the same settings are called elsewhere"]))[2:]:
        path, _, value = re.findall(r"`([^`]+)`", row[0])[0].partition(": ")
        try:
            asked: Any = {path.rpartition(".")[2]: value} if value else None
            schema = OWNERS[path.rpartition(".")[0]]
            if path.rpartition(".")[2] not in schema.model_fields:
                complaints.append(f"there is no {path}")
            elif asked:
                schema.model_validate(asked)
        except (KeyError, ValidationError) as error:
            complaints.append(f"{row[0]}: {error}")
    return complaints


# --- the checks and their controls --------------------------------------------------------------

CHECKS: dict[Check, list[tuple[str, str]]] = {
    refused_examples: [
        ('"strength": 0.35, "steps": 12', '"strength": 1.35, "steps": 12'),
        ('"prompt": "a lighthouse"', '"image": {"image_id": "5f0c…"}, "prompt": "a lighthouse"'),
        ('"scale": 0.7, "end": 0.6', '"scale": 0.7, "end": 0.6, "start": 0.8'),
        ('"adapter": "ip-adapter', '"adaptor": "ip-adapter'),
        ('{"lines": ["red"', '{"words": ["red"'),
        ('"styles": ["Ink"]', '"styles": "Ink"'),
        ('"strength": 0.6}', '"strenght": 0.6}'),
        ('{"low": 100, "high": 200}', '{"low": 300, "high": 200}'),
        ('"upscaler": "lanczos", "scale": 2}', '"upscaler": "lanczos", "scale": 9}'),
        ('"token": "mystyle"', '"token": "my style"'),
    ],
    wrong_defaults: [
        ("| `scale` | 2 |", "| `scale` | 3 |"),
        ("| `upscaler` | `latent` |", "| `upscaler` | `lanczos` |"),
        ("| `padding` | 32 |", "| `paddings` | 32 |"),
        ("| `adapter` | required |", "| `scale` | required |"),
        ("| `start`, `end` | 0, 1 |", "| `start`, `end` | 0, 0.5 |"),
        ("| `references[]` | default | |", "| x | y | z |"),
    ],
    untested_cells: [
        ("| refiner |", "| a refiner of one's own |"),
        ("| in workflows | yes |", "| in workflows |"),
    ],
    unknown_settings: [
        ("`inpaint.blur`", "`inpaint.blurring`"),
        ("`inpaint.area: masked`", "`inpaint.area: mask`"),
        ("| `references` |", "| `reference` |"),
    ],
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_page_on_drawing_says_what_is_so(check: Check) -> None:
    found = check(PAGE)

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [(check, right, wrong) for check, changes in CHECKS.items() for right, wrong in changes],
)
def test_each_check_of_the_page_finds_what_is_wrong(check: Check, right: str, wrong: str) -> None:
    assert right in PAGE
    assert check(PAGE.replace(right, wrong, 1))


def test_every_example_of_the_page_is_seen() -> None:
    """Else the check above would accept what it does not look at."""
    seen = [example for _, example in examples(PAGE)]
    in_blocks = sum(block.count('{"') > 0 for _, block in code_blocks(PAGE))
    objects = re.findall(r'`[^`]*"\w+": [^`]*`', prose(PAGE))

    assert in_blocks == 5
    assert len(seen) == 4 + 3 + len(objects)


@pytest.mark.parametrize(
    "asked",
    [
        {"regions": [{"prompt": "a fig", "left": 0}]},
        {"pag_scale": 3.0},
        {"freeu": {"b1": 1.1}},
        {"refiner": "sd_xl_refiner_1.0", "refiner_switch": 0.8},
        {"tiles": 4},
        {"controls": [{"model": "depth", "module": "depth", "image": {"url": "https://x.org/y"}}]},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_is_not_here_is_refused_by_its_name(asked: dict[str, Any]) -> None:
    """An unknown word is never left out in silence: whoever brings one learns it is not here."""
    name = "module" if "controls" in asked else next(iter(asked))
    for model in (GenerateRequest, GenerateIn):
        assert model.model_validate({"prompt": "a lemon"})
        with pytest.raises(ValidationError, match=rf"\b{name}\b\n  Extra inputs"):
            model.model_validate({"prompt": "a lemon"} | asked)
