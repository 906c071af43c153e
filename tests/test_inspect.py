"""``poise inspect``: what a model is as files, its tokens, and what loading it would do; nothing of it is run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.errors import BrokenModelFile, ModelNotFound
from poise.lifecycle import count_tokens, inspect_model
from poise.lifecycle.pickle_scan import scan_file
from poise.lifecycle.weight_headers import PART_NAMES, block_of, part_of
from steered_passes import no_warnings


def save(folder: Path, architecture: str = "llama", **options: Any) -> Any:
    lm = tiny.lm(architecture)
    with no_warnings():
        lm.save_pretrained(folder, **options)
        tiny.chatml().save_pretrained(folder)
    return lm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model")
    return tmp_path / "model"


class TestParts:
    @pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
    def test_are_all_of_the_model_s_parameters(self, architecture: str, tmp_path: Path) -> None:
        lm = save(tmp_path, architecture)
        seen = inspect_model(str(tmp_path), hashes=False)
        assert seen.parameters == sum(p.numel() for p in lm.parameters())
        assert sum(seen.parts.values()) == seen.parameters
        assert seen.blocks == tiny.L
        assert "other" not in seen.parts
        assert seen.parts["embeddings"] >= 512 * tiny.D
        assert ("experts" in seen.parts) == (architecture in ("mixtral", "qwen3_moe"))
        assert seen.tied_head == (lm.get_output_embeddings().weight is lm.get_input_embeddings().weight)

    def test_are_named_as_gguf_and_safetensors_name_tensors(self) -> None:
        names = {
            "model.layers.3.self_attn.q_norm.weight": ("norms", 3),
            "model.layers.0.mlp.experts.7.w1.weight": ("experts", 0),
            "blk.11.ffn_down.weight": ("feed-forward", 11),
            "blk.0.attn_norm.weight": ("norms", 0),
            "token_embd.weight": ("embeddings", None),
            "output.weight": ("output head", None),
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": ("adapter", 1),
            "vision_tower.encoder.layers.2.mlp.fc1.weight": ("vision and audio", 2),
        }
        assert {name: (part_of(name), block_of(name)) for name in names} == names
        assert {part for part, _ in names.values()} <= set(PART_NAMES)


class TestFiles:
    def test_have_their_size_hash_and_content(self, folder: Path) -> None:
        seen = inspect_model(str(folder))
        by_name = {file.name: file for file in seen.files}
        assert set(by_name) == {path.name for path in folder.iterdir()}
        for name, file in by_name.items():
            data = (folder / name).read_bytes()
            assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert by_name["model.safetensors"].contents.startswith("weights: ")
        assert seen.vocabulary.tokens == len(tiny.chatml())
        assert (seen.vocabulary.special, seen.vocabulary.kind, seen.vocabulary.rows) == (3, "BPE", 512)
        assert seen.template == tiny.CHATML
        assert seen.architecture == "LlamaForCausalLM (llama)"
        assert seen.findings == ()

    def test_need_no_torch(self, folder: Path) -> None:
        code = (
            "import sys; from poise.lifecycle import count_tokens, inspect_model\n"
            f"inspect_model({str(folder)!r}, safe=True); count_tokens({str(folder)!r}, 'boats')\n"
            "print('torch' in sys.modules, 'transformers' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False"]

    def test_in_several_pieces_are_told_by_their_index(self, tmp_path: Path) -> None:
        lm = save(tmp_path, max_shard_size="40KB")
        pieces = sorted(tmp_path.glob("model-*.safetensors"))
        assert len(pieces) > 1
        assert inspect_model(str(tmp_path)).parameters == sum(p.numel() for p in lm.parameters())
        pieces[0].unlink()
        (finding,) = inspect_model(str(tmp_path)).findings
        assert finding.severity == "warning"
        assert pieces[0].name in finding.text

    def test_state_the_licence(self, folder: Path) -> None:
        assert inspect_model(str(folder), hashes=False).licence == ""
        (folder / "LICENSE").write_text("\n  MIT License\n\nPermission is hereby granted\n")
        assert inspect_model(str(folder), hashes=False).licence == "MIT License"
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# x\n")
        assert inspect_model(str(folder), hashes=False).licence == "apache-2.0"

    @pytest.mark.parametrize("damage", ["cut", "longer", "header", "shape"])
    def test_that_are_damaged_are_refused_by_name(self, folder: Path, damage: str) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if damage == "shape":
            header["lm_head.weight"]["shape"] = [1, 1]
            text = json.dumps(header).encode()
            body = data[8 + int.from_bytes(data[:8], "little") :]
            path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        else:
            path.write_bytes({"cut": data[:-5], "longer": data + b"x", "header": b"\xff" * 40}[damage])
        with pytest.raises(BrokenModelFile, match=r"model\.safetensors"):
            inspect_model(str(folder))

    def test_of_gguf_are_read_off_the_header(self, tmp_path: Path) -> None:
        writer = GGUFWriter(tmp_path / "m.gguf", "llama")
        writer.add_string("general.license", "mit")
        writer.add_block_count(2)
        writer.add_string("tokenizer.ggml.model", "gpt2")
        writer.add_token_list(["a", "b", "c"])
        writer.add_chat_template("{{ messages }}")
        writer.add_tensor("token_embd.weight", np.zeros((3, 32), dtype=np.float32))
        writer.add_tensor("blk.1.ffn_up.weight", np.zeros((8, 32), dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        seen = inspect_model(str(tmp_path / "m.gguf"))
        assert (seen.licence, seen.architecture, seen.template) == ("mit", "llama", "{{ messages }}")
        assert seen.parts == {"embeddings": 96, "feed-forward": 256}
        assert seen.dtypes == {"F32": 96, "F16": 256}
        assert (seen.vocabulary.tokens, seen.vocabulary.rows, seen.shape["block_count"]) == (3, 3, 2)
        (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-900])
        with pytest.raises(BrokenModelFile, match="cut short"):
            inspect_model(str(tmp_path / "m.gguf"))

    def test_that_are_not_there_are_told_with_what_to_give(self, tmp_path: Path) -> None:
        for name in (str(tmp_path / "none"), "OWNER/never-fetched", "a b"):
            with pytest.raises(ModelNotFound, match="smollm2-135m"):
                inspect_model(name)
        with pytest.raises(ModelNotFound, match="empty"):
            inspect_model(str(tmp_path))


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo run",))


def hidden_behind_others() -> bytes:
    """``os.system`` by STACK_GLOBAL, with harmless names pushed and dropped right before, which fools a plain list."""
    text = [b"\x8c" + bytes([len(word)]) + word for word in (b"os", b"system", b"collections", b"OrderedDict")]
    return b"\x80\x04" + b"".join(text) + b"00" + b"\x93" + text[0] + b"\x85R."


def zip_of(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return path


class TestSafe:
    def severities(self, path: Path) -> list[str]:
        return [finding.severity for finding in scan_file(path, path.name)]

    @pytest.mark.parametrize("protocol", range(6))
    def test_a_pickle_that_runs_something_is_a_danger(self, tmp_path: Path, protocol: int) -> None:
        (tmp_path / "a.bin").write_bytes(pickle.dumps({"w": [1], "x": Runs()}, protocol))
        (finding,) = scan_file(tmp_path / "a.bin", "a.bin")
        assert finding.severity == "danger"
        assert "posix.system" in finding.text or "nt.system" in finding.text

    def test_names_hidden_behind_others_are_seen(self, tmp_path: Path) -> None:
        (tmp_path / "a.pkl").write_bytes(hidden_behind_others())
        (finding,) = scan_file(tmp_path / "a.pkl", "a.pkl")
        assert (finding.severity, "os.system" in finding.text) == ("danger", True)

    def test_computed_names_are_a_danger(self, tmp_path: Path) -> None:
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04)\x8c\x06system\x93.")
        assert self.severities(tmp_path / "a.pkl") == ["danger"]

    @pytest.mark.parametrize("zipped", [True, False])
    def test_tensors_are_not(self, tmp_path: Path, zipped: bool) -> None:
        torch.save(tiny.lm().state_dict(), tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
        assert set(self.severities(tmp_path / "a.bin")) == {"note"}

    def test_a_class_of_its_own_is_a_warning(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(pickle.dumps(Path("x")))
        assert self.severities(tmp_path / "a.bin") == ["warning"]

    def test_a_pickle_in_an_archive_is_found_whatever_the_file_s_name(self, tmp_path: Path) -> None:
        path = zip_of(tmp_path / "weights.dat", archive__data=pickle.dumps(Runs()))
        (finding,) = scan_file(path, "weights.dat")
        assert (finding.file, finding.severity) == ("weights.dat!archive/data", "danger")

    def test_members_that_lead_out_are_a_danger(self, tmp_path: Path) -> None:
        assert self.severities(zip_of(tmp_path / "a.zip", **{"..__x": b"1"})) == ["danger"]
        assert self.severities(zip_of(tmp_path / "b.zip", __etc__x=b"1")) == ["danger"]
        with tarfile.open(tmp_path / "c.tar", "w") as archive:
            link = tarfile.TarInfo("x")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            data = pickle.dumps(Runs())
            member = tarfile.TarInfo("y.pkl")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        assert self.severities(tmp_path / "c.tar") == ["danger", "danger"]

    def test_a_bomb_is_a_danger(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x", b"0" * (8 << 20))
        assert self.severities(tmp_path / "a.zip") == ["danger"]

    def test_files_that_are_no_pickle_say_so(self, tmp_path: Path) -> None:
        for data in (b"", b"hello there", b"\x80\x04\x95"):
            (tmp_path / "a.bin").write_bytes(data)
            assert self.severities(tmp_path / "a.bin") == ["warning"]
        random = np.random.default_rng(0)
        for start in (b"", b"\x80\x04") * 100:
            (tmp_path / "a.bin").write_bytes(start + random.bytes(200))
            assert self.severities(tmp_path / "a.bin")


class TestTokens:
    @pytest.mark.parametrize("make", [tiny.chatml, tiny.gemma, tiny.llama3])
    def test_are_those_of_transformers_and_their_bytes_are_the_text(self, make: Any, tmp_path: Path) -> None:
        save(tmp_path)
        make().save_pretrained(tmp_path)
        text = "The tide turns 🙂 für alle."
        counts = count_tokens(str(tmp_path), text)
        assert [token.id for token in counts.tokens] == make()(text)["input_ids"]
        data = b"".join(bytes.fromhex(token.bytes) for token in counts.tokens if not token.special)
        assert data.decode().strip() == text

    def test_special_ones_are_marked(self, folder: Path) -> None:
        tokens = count_tokens(str(folder), "<|im_start|>user\n").tokens
        assert [token.special for token in tokens] == [True] + [False] * (len(tokens) - 1)
        assert bytes.fromhex(tokens[0].bytes) == b"<|im_start|>"

    def test_of_languages_and_code_are_counted(self, folder: Path) -> None:
        shares = {share.name: share for share in count_tokens(str(folder), "").shares}
        assert shares["Chinese"].tokens == shares["Chinese"].bytes  # the tiny vocabulary has its bytes alone
        assert shares["English"].tokens < shares["English"].bytes


class TestTheCommand:
    def test_prints_lines_and_one_object(self, folder: Path) -> None:
        done = CliRunner().invoke(app, ["inspect", str(folder)])
        assert done.exit_code == 0, done.output
        assert "LlamaForCausalLM (llama)" in done.stdout
        facts = json.loads(CliRunner().invoke(app, ["inspect", str(folder), "--json", "--no-hashes"]).stdout)
        assert (facts["blocks"], facts["dangerous"], facts["files"][0]["sha256"]) == (tiny.L, False, "")

    def test_ends_with_1_on_a_danger_and_warns_without_looking(self, folder: Path) -> None:
        (folder / "optimizer.pt").write_bytes(pickle.dumps(Runs()))
        done = CliRunner().invoke(app, ["inspect", str(folder)])
        assert (done.exit_code, "Look into it with --safe" in done.stdout) == (0, True)
        done = CliRunner().invoke(app, ["inspect", str(folder), "--safe"])
        assert (done.exit_code, "DANGER    optimizer.pt: A pickle that imports" in done.stdout) == (1, True)

    def test_shows_tokens(self, folder: Path) -> None:
        done = CliRunner().invoke(app, ["inspect", str(folder), "--tokens", "<|im_end|>\x1b"])
        assert done.exit_code == 0, done.output
        assert "3c 7c 69 6d 5f 65 6e 64 7c 3e  <|im_end|>  (special)" in done.stdout
        assert "\x1b" not in done.stdout
