"""The backend `amazon`: Amazon Translate's TranslateText through boto3.

In: texts of any length; those above the service's limit of 10,000 UTF-8 bytes are cut at sentence ends and joined
again with what stood between. Out: an outcome for each. boto3 retries throttling and server errors at a rate that it
adapts; what fails even so is reported as an error of that text, which the next run tries again. What no retry mends
(no credentials, no permission, an unsupported pair of languages) is a `UserError`, and ends the run.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from reranker.errors import UserError, closest
from reranker.prepare.translate.backend import ERROR, Outcome, check_counts
from reranker.prepare.translate.segments import split_text

LIMIT = 10_000
"""UTF-8 bytes of a request's text at most: docs.aws.amazon.com/translate/latest/dg/what-is-limits.html."""

_HOPELESS = {
    "AccessDeniedException": "allow translate:TranslateText to this identity",
    "UnrecognizedClientException": "renew the credentials",
    "InvalidSignatureException": "check the secret key and the clock",
    "ExpiredTokenException": "renew the credentials",
    "SubscriptionRequiredException": "subscribe the account to Amazon Translate",
    "UnsupportedLanguagePairException": "choose other languages",
    "ResourceNotFoundException": "check the names in terminology and the region",
}


class Amazon:
    """Amazon Translate. Credentials and region come from boto3's standard chain where they are not given."""

    def __init__(
        self,
        source: str,
        target: str,
        region: str | None = None,
        profile: str | None = None,
        endpoint_url: str | None = None,
        terminology: Sequence[str] = (),
        formality: str | None = None,
        profanity: str | None = None,
        brevity: str | None = None,
        version: str = "1",
        concurrency: int = 10,
        batch_texts: int = 1,
        max_attempts: int = 10,
        price: float = 15.0,
        seconds_per_text: float = 0.2,
        config_key: str = "backend",
    ) -> None:
        self._key = config_key
        check_counts(config_key, concurrency, batch_texts, price, seconds_per_text)
        if not isinstance(max_attempts, int) or max_attempts < 1:
            raise UserError(f"{config_key}.max_attempts", repr(max_attempts), "1 or more", "change the value")
        if isinstance(terminology, str) or len(terminology) > 1:
            raise UserError(f"{config_key}.terminology", str(terminology), "a list of one name or none",
                            f"say {config_key}.terminology=[name]")  # fmt: skip
        self._settings = {
            name: _choice(f"{config_key}.{key}", value, choices)
            for name, key, value, choices in (
                ("Formality", "formality", formality, ("FORMAL", "INFORMAL")),
                ("Profanity", "profanity", profanity, ("MASK",)),
                ("Brevity", "brevity", brevity, ("ON",)),
            )
            if value is not None
        }
        self._languages = (source, target)
        self._terminology = [str(name) for name in terminology]
        self._session = {"region_name": region, "profile_name": profile}
        self._endpoint_url, self._max_attempts = endpoint_url, max_attempts
        self._client: Any = None
        self._opening = threading.Lock()
        self.concurrency, self.batch_texts = concurrency, batch_texts
        self.price, self.seconds_per_text = float(price), float(seconds_per_text)
        chosen = [f"{key}={value}" for key, value in sorted(self._settings.items())]
        self.identity = " ".join(
            [f"amazon {version} {source}>{target}", *chosen, *(f"terminology={name}" for name in self._terminology)]
        )

    def translate(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome for each text. Raises UserError for what no later text would be spared."""
        client = self._open()
        return [self._translate(client, text) for text in texts]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _translate(self, client: Any, text: str) -> Outcome:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        translated: list[str] = []
        try:
            for part, separator in split_text(text, LIMIT):
                translated += [self._send(client, part) if part else "", separator]
        except NoCredentialsError:
            raise _no_credentials(self._key) from None
        except ClientError as error:
            code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
            if code in _HOPELESS:
                raise UserError(
                    self._key, f"{code} ({message})", "a service that translates", _HOPELESS[code]
                ) from None
            return Outcome(None, f"{ERROR}{code} {message}".strip())
        except BotoCoreError as error:
            return Outcome(None, f"{ERROR}{' '.join(str(error).split())}")
        return Outcome("".join(translated))

    def _send(self, client: Any, text: str) -> str:
        source, target = self._languages
        request: dict[str, Any] = {"Text": text, "SourceLanguageCode": source, "TargetLanguageCode": target}
        if self._terminology:
            request["TerminologyNames"] = self._terminology
        if self._settings:
            request["Settings"] = self._settings
        return str(client.translate_text(**request)["TranslatedText"])

    def _open(self) -> Any:
        """The client, which all threads share. Raises UserError where it cannot be made."""
        # A dry run makes no client: it needs neither boto3 nor credentials.
        with self._opening:
            if self._client is None:
                self._client = self._connect()
        return self._client

    def _connect(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, NoRegionError
        except ImportError:
            raise UserError(self._key, "no boto3", "boto3, which this backend speaks through",
                            "pip install 'ko-reranker[translation]'") from None  # fmt: skip
        config = Config(
            retries={"mode": "adaptive", "total_max_attempts": self._max_attempts},
            max_pool_connections=self.concurrency,
        )
        try:
            session = boto3.Session(**self._session)
            if session.get_credentials() is None:
                raise _no_credentials(self._key)
            return session.client("translate", config=config, endpoint_url=self._endpoint_url)
        except NoRegionError:
            raise UserError(f"{self._key}.region", "no region", "an AWS region",
                            f"say {self._key}.region=eu-west-1, for example") from None  # fmt: skip
        except (BotoCoreError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(self._key, f"a client that cannot be made ({error})", "settings of boto3",
                            "check profile, region and endpoint_url") from None  # fmt: skip


def _no_credentials(key: str) -> UserError:
    return UserError(key, "no AWS credentials", "those of boto3's standard chain",
                     f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or {key}.profile")  # fmt: skip


def _choice(key: str, value: str, choices: Sequence[str]) -> str:
    # YAML reads a bare ON as true.
    text = "ON" if value is True else str(value).upper()
    if text not in choices:
        near = closest(text, choices)
        raise UserError(key, repr(value), "one of " + ", ".join(choices),
                        f"did you mean {near}?" if near else "change the value")  # fmt: skip
    return text
