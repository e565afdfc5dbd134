"""Models of others, from folders in the format of Hugging Face: a checkpoint and a tokenizer here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from custom_transformer.errors import UserError, one_line
from custom_transformer.files import sha256_file, staged_folders, writing
from custom_transformer.interchange import check_target, config_of, from_huggingface, quiet
from custom_transformer.interchange.forms import FORMS
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.text.saved_tokenizer import vocabulary_size
from custom_transformer.text.tokenization import plain

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

CHECKPOINT, TOKENIZER = "model.pt", "tokenizer"  # the names in the folder of an imported model


def import_huggingface(source: Path, folder: Path, origin: str | None = None) -> CustomTransformer:
    """Writes the model and the tokenizer in the folder `source` as `folder`/model.pt and `folder`/tokenizer/.

    origin: what the checkpoint's metadata name as its source; None: the name of `source`. Raises UserError, naming the
    file and what is wrong, for what is damaged, missing or unusual.
    """
    import transformers

    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give one that save_pretrained wrote")
    check_target(folder, (CHECKPOINT, TOKENIZER), source)
    quiet()
    try:
        given = json.loads((source / "config.json").read_text("utf-8"))
        if not isinstance(given, dict):
            raise ValueError("it holds no object")
        # What is not there has the library's defaults, some of which follow from what is.
        known = given.get("model_type") in FORMS
        complete = type(transformers.AutoConfig.for_model(given["model_type"])).from_dict(given) if known else None
        config = config_of(given if complete is None else complete.to_dict())
    except FileNotFoundError:
        raise UserError(f"{source}: no config.json there; give a folder that save_pretrained wrote") from None
    except Exception as error:  # values of any kind may stand there
        raise UserError(f"{source / 'config.json'}: {one_line(error)[:200]}") from None
    form = FORMS[given["model_type"]]
    try:
        theirs, info = getattr(transformers, form.model_class).from_pretrained(
            source, local_files_only=True, output_loading_info=True, dtype="auto", ignore_mismatched_sizes=True
        )
        borne = {"missing_keys": ("lm_head.weight",) if config.tie_embeddings else (), "unexpected_keys": form.ignored}
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if keys := sorted(str(key) for key in info[what] if not str(key).endswith(borne.get(what, ()))):
                raise ValueError(f"{what.replace('_', ' ')}: {keys[0]}")
        model = from_huggingface(theirs)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{source}: no weights that could be read ({one_line(error)[:200]})") from None
    try:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True)
    except Exception as error:
        raise UserError(f"{source}: no tokenizer that could be read ({one_line(error)[:200]})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{source}: its tokenizer has no end token; name one as eos_token in tokenizer_config.json")
    write_imported(folder, model, tokenizer, source, origin or source.resolve().name)
    return model


def write_imported(
    folder: Path, model: CustomTransformer, tokenizer: PreTrainedTokenizerFast, source: Path, origin: str
) -> None:
    """Writes `folder`/model.pt, whose metadata name `origin`, and `folder`/tokenizer/, once both are whole.

    Raises UserError, naming `source`, for a tokenizer of another vocabulary, StorageError for a folder that cannot be
    written.
    """
    if (size := vocabulary_size(tokenizer)) > model.config.vocab_size:
        raise UserError(f"{source}: the tokenizer has {size} entries, the model {model.config.vocab_size}")
    chat_template = tokenizer.chat_template
    tokenizer = plain(tokenizer)  # the very file that the pipeline makes of it, by whose digest the two are compared
    tokenizer.chat_template = chat_template
    with staged_folders(folder) as (staged,), writing(folder, staged):
        tokenizer.save_pretrained(staged / TOKENIZER)
        digest = sha256_file(staged / TOKENIZER / "tokenizer.json")
        save_checkpoint(staged / CHECKPOINT, model, {"source": origin, "tokenizer": digest})
