"""`batchrouter prepare`: a table and a prompt to request rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from batchrouter import jsontext
from batchrouter.cli.options import Assigned, config_option
from batchrouter.cli.questions import Line, strongest
from batchrouter.dataset.labels import parse_json, read_json, response_format
from batchrouter.dataset.prepare import Question, prepare, write_requests
from batchrouter.dataset.questions import read_prompt
from batchrouter.errors import UsageError
from batchrouter.estimate import answer_budget, estimate_tokens
from batchrouter.retry import clean
from batchrouter.settings import options

_SHOWN_CHARACTERS: Final = 2000
_SET: Final = Assigned(options()["set"])


@click.command(name="prepare")
@click.argument("data", metavar="DATA")
@click.option("-o", "--output", metavar="FILE", help="The request rows (JSONL); - for standard output.")
@click.option(
    "--template", "--prompt-file", "template", metavar="FILE", help="A file with the prompt's text, a Jinja template."
)
@click.option("--prompt", metavar="TEXT", help="The prompt's text itself.")
@click.option("--system", metavar="TEXT", help="A system message before the prompt, a template too.")
@click.option("--id", metavar="COLUMN", help="The column with the rows' ids. [row-1, row-2, …]")
@click.option("--image", type=Line(), metavar="COLUMN", multiple=True, help="A column with pictures: paths or URLs.")
@click.option("--model", metavar="ID", help="The model of every row. [the run's]")
@click.option("--set", type=_SET, metavar="KEY=JSON", multiple=True, help="A field of every body.")
@click.option("--response-format", metavar="FILE|JSON", help="json_object, a JSON schema, or the field as it is.")
@click.option("--sample", metavar="N", type=click.IntRange(1), help="Only N rows, drawn at random.")
@click.option("--seed", metavar="S", type=int, default=0, help="Of the sample. [0]")
@click.option("--preview", metavar="N", type=click.IntRange(1), help="Show N rendered requests; nothing is written.")
@config_option
@click.pass_context
def command(ctx: click.Context, /, data: str, output: str | None, preview: int | None, **values: Any) -> None:
    """Render a prompt for every row of DATA (.csv, .tsv, .jsonl, also .gz and .zst; .parquet) into request rows.

    A row's columns are the template's names: {{ review }}, or {{ row["review text"] }}. What a cell holds is data,
    never template. Values that are null render as nothing; a name that a row does not have is an error.

    \b
    Examples:
      batchrouter prepare reviews.csv --prompt 'Sentiment? {{ review }}' --preview 3
      batchrouter prepare reviews.csv --template prompt.txt --id review_id -o requests.jsonl
    """
    if (output is None) == (preview is None):
        raise UsageError("say where the request rows go with -o FILE, or look at some with --preview 3")
    requests = prepare(
        data, _question(ctx, values), id_column=values["id"], sample=values["sample"], seed=values["seed"]
    )
    if output is not None and output != "-" and Path(output).exists() and Path(output).samefile(data):
        raise UsageError(f"{output} is the table itself: write to another file")
    if preview is not None:
        _show(islice(requests, preview))
        return
    count = write_requests(requests, str(output))
    if output != "-":
        click.echo(f"{count:,} request rows: {output}", err=True)
        click.echo(f"to send them: batchrouter run {output}", err=True)


def _question(ctx: click.Context, values: Mapping[str, Any]) -> Question:
    given = strongest(ctx, values, ("prompt", "template"))
    if len(given) != 1:
        raise UsageError("give the prompt with either --prompt TEXT or --template FILE")
    try:
        defaults = options()["set"].parse(values["set"])
    except ValueError as error:
        raise UsageError(f"--set: {error}") from None
    is_text = given == ["prompt"]
    return Question(
        prompt=values["prompt"] if is_text else read_prompt(values["template"]),
        name="--prompt" if is_text else values["template"],
        system=values["system"],
        images=values["image"],
        response_format=_response_format(values["response_format"]),
        model=values["model"],
        defaults=defaults,
    )


def _response_format(text: str | None) -> Mapping[str, Any] | None:
    """What `--response-format` means: a kind by name, JSON, or a file with either a schema or the whole field."""
    if text is None:
        return None
    if text in {"json_object", "text"}:
        return {"type": text}
    is_text = text.lstrip().startswith("{")
    document = parse_json(text.encode(), "--response-format") if is_text else read_json(Path(text))
    return response_format(document, "answer" if is_text else Path(text).stem)


def _show(requests: Iterable[Mapping[str, Any]]) -> None:
    """Requests as a person reads them, without what a terminal would obey."""
    total = count = 0
    for request in requests:
        count += 1
        body = request["body"]
        tokens = estimate_tokens(jsontext.dumps(body), answer_budget(body))
        total += tokens
        click.echo(click.style(f"{clean(request['custom_id'])}  (about {tokens:,} tokens)", bold=True))
        for message in body["messages"]:
            click.echo(f"{message['role']}:")
            for text in _texts(message["content"]):
                click.echo("".join(f"  {clean(line)}\n" for line in text[:_SHOWN_CHARACTERS].split("\n")), nl=False)
                if len(text) > _SHOWN_CHARACTERS:
                    click.echo(f"  … {len(text) - _SHOWN_CHARACTERS:,} characters more")
        rest = {key: value for key, value in body.items() if key != "messages"}
        if rest:
            click.echo(f"with {clean(json.dumps(rest, ensure_ascii=False))}")
        click.echo()
    if count:
        click.echo(f"{count:,} rows, about {total // count:,} tokens each, prompt and answer; nothing was written")
    else:
        click.echo("there are no rows")


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] if part["type"] == "text" else f"[image] {part['image_url']['url'][:80]}" for part in content]
