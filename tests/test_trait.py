"""Traits in files: the library, the user's own files and pairs, and what is said when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.errors import InvalidExemplars, InvalidTrait, UnknownTrait
from poise.trait import ExemplarPair, OwnTrait, Trait, same_question
from poise.trait.library import (
    dump,
    evaluation_questions,
    general_questions,
    load_trait,
    names,
    own_trait,
    read_pairs,
    trait_name,
)

SEVEN = ["apathetic", "evil", "hallucinating", "humorous", "impolite", "optimistic", "sycophantic"]


def document() -> dict[str, Any]:
    """A small valid trait file as data."""

    def pairs(kind: str, count: int) -> list[dict[str, str]]:
        return [
            {"question": f"{kind} {i}?", "with": f"Grr {kind} {i}.", "without": f"Yes {kind} {i}."}
            for i in range(count)
        ]

    return {
        "schema": 1,
        "name": "grumpy",
        "description": "Complains about everything it is asked.",
        "adjective": "grumpy",
        "opposite": "cheerful",
        "instructions": [{"with": f"Grumble {i}.", "without": f"Smile {i}."} for i in range(5)],
        "questions": {
            "extraction": [f"asked {i}?" for i in range(20)],
            "evaluation": [f"tested {i}?" for i in range(20)],
        },
        "rubric": "0 is no complaint, 100 is nothing but complaints.",
        "exemplars": {"extraction": pairs("a", 24), "judge": pairs("b", 12), "held_out": pairs("c", 12)},
    }


def written(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "grumpy.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def saved(tmp_path: Path, data: dict[str, Any]) -> tuple[str, list[str]]:
    """Path of a trait file, and its lines to look numbers up in."""
    text = yaml.safe_dump(data, sort_keys=False)
    return written(tmp_path, text), text.splitlines()


def complaint(path: str) -> str:
    with pytest.raises(InvalidTrait) as caught:
        load_trait(path)
    return str(caught.value)


class TestLibrary:
    def test_has_the_seven(self) -> None:
        assert names() == SEVEN

    @pytest.mark.parametrize("name", SEVEN)
    def test_each_loads_under_its_own_name_with_the_promised_counts(self, name: str) -> None:
        trait = load_trait(name)
        assert trait.name == name
        assert len(trait.instructions) >= 5
        assert (len(trait.questions.extraction), len(trait.questions.evaluation)) >= (20, 20)
        assert len(trait.extraction_pairs) >= 24
        assert len(trait.judge_pairs) >= 12
        assert len(trait.held_out_pairs) >= 12

    def test_is_found_from_any_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "evil").write_text("a file of that name does not win")
        assert load_trait("evil").name == "evil"

    def test_has_sixty_general_questions_or_more_without_repeats(self) -> None:
        questions = general_questions()
        assert len(questions) >= 60
        assert len({same_question(q) for q in questions}) == len(questions)


class TestUnknownNames:
    def test_a_misspelling_is_told_the_closest_name_and_the_library(self) -> None:
        with pytest.raises(UnknownTrait, match=r"'sycophant'.*did you mean sycophantic") as caught:
            load_trait("sycophant")
        assert all(name in str(caught.value) for name in SEVEN)

    @pytest.mark.parametrize("name", ["qqqq", "no/such/file.yaml", "", "a\0b"])
    def test_without_a_close_name_none_is_suggested(self, name: str) -> None:
        with pytest.raises(UnknownTrait) as caught:
            load_trait(name)
        assert "did you mean" not in str(caught.value)

    def test_a_folder_is_not_a_trait(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownTrait, match="cannot be read"):
            load_trait(str(tmp_path))


class TestTraitFiles:
    def test_a_valid_file_loads(self, tmp_path: Path) -> None:
        path, _ = saved(tmp_path, document())
        assert load_trait(path) == Trait.model_validate(document())

    def test_a_missing_field_is_named_with_its_line(self, tmp_path: Path) -> None:
        data = document()
        del data["exemplars"]["judge"][3]["without"]
        path, lines = saved(tmp_path, data)
        line = lines.index("  - question: b 3?") + 1
        assert complaint(path) == f"{path}, line {line}: exemplars.judge[3].without is missing; fix it and try again."

    def test_a_missing_section_points_at_the_nearest_thing_that_is_there(self, tmp_path: Path) -> None:
        data = document()
        del data["questions"]["evaluation"]
        path, lines = saved(tmp_path, data)
        assert f"line {lines.index('questions:') + 1}: questions.evaluation is missing" in complaint(path)

    def test_all_mistakes_come_in_one_error_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        data = document()
        data["name"] = "Very Grumpy"
        data["instructions"][2]["with"] = "   "
        data["questions"]["extraction"] = ["only one?"]
        data["rubrik"] = data.pop("rubric")
        path, lines = saved(tmp_path, data)
        _, *said = complaint(path).splitlines()
        assert said == [
            "  line 1: rubric is missing",
            "  line 2: name is 'Very Grumpy'; use up to 64 of a-z, 0-9, - and _, beginning with a letter or a digit",
            f"  line {lines.index('- with: ' + chr(39) + '   ' + chr(39)) + 1}: instructions[2].with is empty",
            f"  line {lines.index('  extraction:') + 1}: questions.extraction has 1 entry, and needs 20 or more",
            f"  line {lines.index('rubrik: ' + document()['rubric']) + 1}: "
            "rubrik is not a known field; did you mean rubric?",
        ]

    def test_no_more_than_ten_mistakes_are_listed(self, tmp_path: Path) -> None:
        data = document()
        for pair in data["exemplars"]["extraction"]:
            pair["with"] = ""
        path, _ = saved(tmp_path, data)
        head, *said = complaint(path).splitlines()
        assert "24 mistakes" in head
        assert len(said) == 11
        assert said[-1] == "  and 14 more"

    def test_a_repeated_question_is_named_with_both_places_and_its_line(self, tmp_path: Path) -> None:
        data = document()
        data["exemplars"]["held_out"][1]["question"] = "ASKED  4"
        path, lines = saved(tmp_path, data)
        line = lines.index("  - question: ASKED  4") + 1
        assert (
            f"line {line}: exemplars.held_out[1].question repeats the question of questions.extraction[4]"
            in complaint(path)
        )

    def test_broken_yaml_is_told_with_its_line(self, tmp_path: Path) -> None:
        path = written(tmp_path, "schema: 1\nname: grumpy\ndescription: What: this\n")
        assert "line 3: broken YAML, mapping values are not allowed here" in complaint(path)

    def test_text_that_yaml_took_for_a_mapping_is_told_to_be_quoted(self, tmp_path: Path) -> None:
        data = document()
        data["questions"]["evaluation"][0] = {"My question": "is this one?"}
        path, _ = saved(tmp_path, data)
        assert "questions.evaluation[0] should be text; put it in quotes" in complaint(path)

    def test_scalars_are_text_as_written(self, tmp_path: Path) -> None:
        path, _ = saved(tmp_path, document())
        text = Path(path).read_text().replace("Grr a 0.", "no").replace("Yes a 0.", "2024-99-99")
        pair = load_trait(written(tmp_path, text)).extraction_pairs[0]
        assert (pair.positive, pair.negative) == ("no", "2024-99-99")

    def test_bytes_that_are_not_utf8_are_told_with_their_line(self, tmp_path: Path) -> None:
        assert "line 2: is not UTF-8 text" in complaint(written(tmp_path, b"schema: 1\nname: \xff\n"))

    def test_a_byte_order_mark_is_no_mistake(self, tmp_path: Path) -> None:
        text = yaml.safe_dump(document(), sort_keys=False).encode()
        assert load_trait(written(tmp_path, b"\xef\xbb\xbf" + text)).name == "grumpy"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "description is missing"),
            ("- a\n- b\n", "the file should be a mapping of fields"),
            ("just text", "the file should be a mapping of fields"),
            ("schema: 1\nschema: 1\n", "line 2: schema is there twice; keep one"),
            ("schema: 2\n", "line 1: schema is '2', and this version of Poise reads 1"),
            ("rubric:\nschema: 1\n", "line 1: rubric is empty"),
            ("schema: 1\nname: \x07\n", "line 2: holds the control character 0x07"),
            ("a: 1\n---\nb: 2\n", "line 2: broken YAML"),
            ("? [1, 2]\n: x\n", "line 1: broken YAML, a field without a name"),
            ("a: &a [*a]\n", "a is not a known field"),
            ("[" * 5000, "nested too deeply"),
        ],
    )
    def test_other_broken_files_are_told_in_a_sentence(self, tmp_path: Path, text: str, said: str) -> None:
        assert said in complaint(written(tmp_path, text))

    def test_aliases_cost_no_more_than_their_anchor(self, tmp_path: Path) -> None:
        levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
        assert "not a known field" in complaint(written(tmp_path, "\n".join(["a0: &a0 x", *levels])))


class TestDump:
    @pytest.mark.parametrize("name", SEVEN)
    def test_what_is_dumped_loads_equal(self, name: str, tmp_path: Path) -> None:
        trait = load_trait(name)
        assert load_trait(written(tmp_path, dump(trait))) == trait

    def test_keys_keep_the_order_of_the_schema_and_the_words_of_the_file(self) -> None:
        data = yaml.safe_load(dump(Trait.model_validate(document())))
        assert json.dumps(data) == json.dumps(
            {k: document()[k] for k in Trait.model_json_schema(by_alias=True)["properties"]}
        )

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=9, max_size=9))
    @settings(max_examples=60, deadline=None)
    def test_any_text_survives(self, texts: list[str]) -> None:
        texts = [text.strip() or "null" for text in texts]
        data = document()
        data["description"], data["rubric"] = texts[0] + " word" * 40, texts[1]
        data["adjective"], data["opposite"] = texts[2:4]
        data["instructions"][0] = {"with": texts[4], "without": texts[5]}
        data["exemplars"]["judge"][0] = {"question": "b 0? " + texts[6], "with": texts[7], "without": texts[8]}
        trait = Trait.model_validate(data)
        assert Trait.model_validate(yaml.safe_load(dump(trait))) == trait


def lines_file(tmp_path: Path, *lines: str | dict[str, Any]) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def row(i: int) -> dict[str, str]:
    return {"question": f"question {i}?", "positive": f"yes {i}", "negative": f"no {i}"}


class TestOwnPairs:
    def test_both_spellings_of_the_sides_are_read_and_blank_lines_skipped(self, tmp_path: Path) -> None:
        other = {"question": "é?", "with": "ja", "without": "nein"}
        pairs = read_pairs(lines_file(tmp_path, row(0), "", row(1), other, row(2), ""))
        assert [p.positive for p in pairs] == ["yes 0", "yes 1", "ja", "yes 2"]

    def test_every_bad_line_is_named_with_what_is_wrong(self, tmp_path: Path) -> None:
        path = lines_file(
            tmp_path,
            row(0),
            row(1) | {"negative": "  "},
            {"question": "q?", "positive": "yes"},
            "{broken",
            row(2) | {"score": 3},
            row(3) | {"negative": "yes 3"},
            "[1, 2]",
            {"question": "q?", "with": "", "without": 7},
        )
        with pytest.raises(InvalidExemplars) as caught:
            read_pairs(path)
        head, *said = str(caught.value).splitlines()
        assert head == f"{path} has 8 mistakes; fix them and try again:"
        assert [s.strip() for s in said] == [
            "line 2: negative is empty",
            "line 3: negative is missing",
            "line 4: is not JSON (Expecting property name enclosed in double quotes)",
            "line 5: score is not a known field",
            "line 6: both sides are the same",
            "line 7: the line should be a mapping of fields",
            "line 8: with is empty",
            "line 8: without should be text; put it in quotes",
        ]

    def test_bytes_that_are_not_utf8_are_a_bad_line(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(b"\n\xff\n")
        with pytest.raises(InvalidExemplars, match="line 2: is not UTF-8 text"):
            read_pairs(path)

    def test_no_more_than_ten_bad_lines_are_listed(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidExemplars, match="and 15 more"):
            read_pairs(lines_file(tmp_path, *["5"] * 25))

    @pytest.mark.parametrize("count", [0, 3])
    def test_fewer_than_four_pairs_are_too_few(self, tmp_path: Path, count: int) -> None:
        with pytest.raises(InvalidExemplars, match=rf"pairs.jsonl has {count} exemplar pairs.*at least 4"):
            read_pairs(lines_file(tmp_path, *map(row, range(count))))

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(InvalidExemplars, match=r"nowhere.jsonl cannot be read"):
            read_pairs("nowhere.jsonl")


class TestOwnTrait:
    def pairs(self) -> tuple[ExemplarPair, ...]:
        return tuple(ExemplarPair.model_validate(row(i)) for i in range(4))

    def test_its_pairs_serve_the_vector_and_the_judge_and_none_is_held_out(self) -> None:
        trait = own_trait("Dry  Wit", self.pairs())
        assert (trait.name, trait.adjective) == ("dry-wit", "dry wit")
        assert trait.extraction_pairs == trait.judge_pairs == self.pairs()
        assert trait.held_out_pairs == ()

    @pytest.mark.parametrize("name", ["", "-dry", "höflich", "a/b", "x" * 65])
    def test_a_name_that_cannot_be_is_told_what_can(self, name: str) -> None:
        with pytest.raises(InvalidTrait, match=r"cannot be the name of a trait; use up to 64 of a-z, 0-9, - and _"):
            own_trait(name, self.pairs())

    def test_needs_four_pairs(self) -> None:
        with pytest.raises(InvalidExemplars, match="has 3 exemplar pairs"):
            own_trait("dry", self.pairs()[:3])

    def test_names_are_written_small_with_hyphens(self) -> None:
        assert trait_name("  Very Grumpy_2 ") == "very-grumpy_2"


class TestEvaluationQuestions:
    def test_of_a_trait_are_its_own(self) -> None:
        trait = load_trait("evil")
        assert evaluation_questions(trait) == trait.questions.evaluation

    def test_of_the_users_own_are_the_general_ones_that_its_pairs_do_not_ask(self) -> None:
        bank = general_questions()
        asked = bank[5].upper().replace("?", " !")
        pairs = tuple(ExemplarPair(question=q, positive="a", negative="b") for q in (asked, "x?", "y?", "z?"))
        assert evaluation_questions(OwnTrait(name="dry", pairs=pairs)) == bank[:5] + bank[6:]
