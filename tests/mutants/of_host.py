"""Files, addresses and settings: what others on the host could read, write, or pass off as ours."""

from tests.mutants.mutant import MutantsOf

_keys = MutantsOf("keys", "keys")
_file = MutantsOf("connection_file", "connection_file")
_endpoint = MutantsOf("endpoints", "link", "categories", "twistd", "service")
_dial = MutantsOf("dialling", "dialler", "mistakes", "link", "rotation", "client_service")
_config = MutantsOf("config", "config", "config_sources")

_OPEN_KEY = "os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK"
_OPEN_FILE = (
    "        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)\n"
    "    except FileNotFoundError:"
)
_HEX = "if len(line) != _HEX_DIGITS or not line.isalnum():"
_FORM = r"""re.compile(r"tcp:(0|[1-9][0-9]{0,4}):interface=127\.0\.0\.1\Z")"""
_BOUND = 'if getattr(host, "host", None) != LOOPBACK or family != socket.AF_INET:'
_HOST = "        if type(value) is str and value == LOOPBACK:\n"

MUTANTS = [
    # Key files
    _keys(
        "key-file-followed",
        "a link leads to a file of somebody's choice",
        _OPEN_KEY,
        _OPEN_KEY.replace(" | os.O_NOFOLLOW", ""),
    ),
    _keys("key-file-blocks", "a FIFO hangs the process", _OPEN_KEY, _OPEN_KEY.replace(" | os.O_NONBLOCK", "")),
    _keys(
        "key-file-checked-by-name",
        "it is exchanged between check and use",
        "_insecure(os.fstat(descriptor),",
        "_insecure(os.stat(path),",
    ),
    _keys(
        "key-file-irregular",
        "a device or FIFO is a key file",
        "    if not stat.S_ISREG(status.st_mode):\n",
        "    if False:\n",
    ),
    _keys(
        "key-file-of-another", "the file of another user", "    if status.st_uid != os.geteuid():\n", "    if False:\n"
    ),
    _keys(
        "key-file-open", "a file that all could read or write", "    if status.st_mode & 0o077:\n", "    if False:\n"
    ),
    _keys(
        "key-file-open-to-group", "a file that the group could read", "status.st_mode & 0o077", "status.st_mode & 0o007"
    ),
    _keys("key-file-readable", "a file that others could read", "status.st_mode & 0o077", "status.st_mode & 0o033"),
    _keys(
        "key-file-linked",
        "another name of the file may have other rights around it",
        "    if status.st_nlink != 1:\n",
        "    if False:\n",
    ),
    _keys("key-file-large", "any file is read", "    if len(content) > MAX_KEY_FILE_BYTES:\n", "    if False:\n"),
    _keys("key-of-any-length", "a line with too many digits is a key", _HEX, "if not line.isalnum():"),
    _keys("key-with-blanks", "two halves make a key", _HEX, "if len(line) != _HEX_DIGITS:"),
    _keys("key-in-error", "an error holds the line", 'f"line {number} is not', 'f"line {number} ({raw!r}) is not'),
    _keys(
        "keys-in-traceback",
        "the frame of the error holds the keys",
        "        del content, keys  # tracebacks may show locals\n",
        "",
    ),
    _keys(
        "ring-in-traceback",
        "the frame of the error holds the keys",
        "            del secrets  # tracebacks may show locals\n",
        "",
    ),
    _keys(
        "ring-pickled",
        "keys can be sent out of the process",
        'raise TypeError("a keyring cannot be pickled")',
        "return Keyring, ([bytes(32)],)",
    ),
    _keys("ring-empty", "a ring without a key", "        if not self._prks:\n", "        if False:\n"),
    _keys(
        "ring-last-is-current", "after a rotation the old key is used", "return self._prks[0]", "return self._prks[-1]"
    ),
    _keys("new-key-overwrites", "a key that is in use is replaced", " | os.O_EXCL", ""),
    _keys("new-key-open", "others can read a new key", "os.fchmod(descriptor, 0o600)", "os.fchmod(descriptor, 0o644)"),
    _keys(
        "new-key-constant",
        "a new key is known",
        "secrets.token_hex(MIN_SECRET_BYTES)",
        "bytes(MIN_SECRET_BYTES).hex()",
        tests=("keys", "cli", "service"),
    ),
    # Connection files
    _file(
        "file-followed",
        "a link leads to a file of somebody's choice",
        _OPEN_FILE,
        _OPEN_FILE.replace(" | os.O_NOFOLLOW", ""),
    ),
    _file("file-blocks", "a FIFO hangs the process", _OPEN_FILE, _OPEN_FILE.replace(" | os.O_NONBLOCK", "")),
    _file(
        "file-checked-by-name",
        "it is exchanged between check and use",
        "status = os.fstat(descriptor)",
        "status = os.stat(path)",
    ),
    _file(
        "file-irregular",
        "a device or FIFO is a connection file",
        "        if not stat.S_ISREG(status.st_mode):\n",
        "        if False:\n",
    ),
    _file(
        "file-of-another",
        "somebody else says where the server is",
        "        if status.st_uid != os.geteuid():\n            raise _error(path",
        "        if False:\n            raise _error(path",
    ),
    _file(
        "file-open",
        "everybody can say where the server is",
        "        if status.st_mode & 0o077:\n",
        "        if False:\n",
    ),
    _file(
        "file-open-to-group",
        "the group can say where the server is",
        "        if status.st_mode & 0o077:\n",
        "        if status.st_mode & 0o007:\n",
    ),
    _file("file-large", "any file is read", "    if len(content) > MAX_BYTES:\n", "    if False:\n"),
    _file("file-other-host", "another host is dialled", 'host: Literal["127.0.0.1"]', "host: str"),
    _file("file-port-zero", "no port", "Meta(ge=1, le=MAX_PORT)", "Meta(ge=0, le=MAX_PORT)"),
    _file("file-port-high", "a port that is none", "Meta(ge=1, le=MAX_PORT)", "Meta(ge=1)"),
    _file("file-other-protocol", "another version", "protocol: Literal[1]", "protocol: int"),
    _file("file-other-transport", "another transport", 'transport: Literal["tcp_local"]', "transport: str"),
    _file("file-any-service", "any text is a service", "    service: Service\n", "    service: str\n"),
    _file(
        "file-any-key-id",
        "any text is a key id, and is printed",
        'Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\\Z")]',
        "str",
    ),
    _file("file-key-id-newline", "a key id with a line break, and is printed", "{16}\\Z", "{16}$"),
    _file(
        "file-any-pid", "a pid that is a whole group of processes", "Annotated[int, Meta(ge=1, le=2**31 - 1)]", "int"
    ),
    _file(
        "file-written-open",
        "others can read it",
        "            with os.fdopen(descriptor",
        "            os.fchmod(descriptor, 0o644)\n            with os.fdopen(descriptor",
    ),
    _file(
        "file-written-through-a-link",
        "a link that lies there is written through",
        "            os.replace(name, path)\n",
        "            path.write_bytes(Path(name).read_bytes())\n"
        "            path.chmod(0o600)\n"
        "            os.unlink(name)\n",
    ),
    _file(
        "folder-of-another",
        "somebody else can exchange the file",
        "    if status.st_uid != os.geteuid():\n        raise _error(folder",
        "    if False:\n        raise _error(folder",
    ),
    _file(
        "folder-open",
        "others can exchange the file",
        "    if status.st_mode & 0o077:\n        raise _error(\n            folder",
        "    if False:\n        raise _error(\n            folder",
    ),
    _file("folder-made-open", "others can exchange the file", "folder.mkdir(mode=0o700,", "folder.mkdir(mode=0o755,"),
    _file(
        "file-of-another-server-removed",
        "who starts while we stop is not found",
        "    if is_ours(path, info):\n",
        "    if True:\n",
    ),
    _file(
        "living-server-replaced",
        "a second server takes the place of the first",
        "    if info is not None and _alive(info):\n",
        "    if False:\n",
    ),
    _file(
        "doubt-is-death",
        "a server that is too busy to accept is replaced",
        "            return True  # a full backlog is no sign of death\n",
        "            return False\n",
    ),
    _file(
        "folder-unlocked",
        "two that start at once take one file",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX)\n",
        "",
    ),
    # Where is listened and dialled
    _endpoint("endpoint-with-more", "a second interface= wins", _FORM, _FORM.replace(r"\Z", "")),
    _endpoint("endpoint-newline", "a line break behind it", _FORM, _FORM.replace(r"\Z", "$")),
    _endpoint("endpoint-other-host", "another address", _FORM, _FORM.replace(r"127\.0\.0\.1", "[0-9.]+")),
    _endpoint("endpoint-dots", "any character for a dot", _FORM, _FORM.replace(r"\.", ".")),
    _endpoint(
        "endpoint-other-digits",
        "digits of another script",
        _FORM,
        _FORM.replace("0|[1-9][0-9]{0,4}", r"0|(?!0)\d{1,5}"),
    ),
    _endpoint(
        "endpoint-leading-zeros", "a port in another form", _FORM, _FORM.replace("0|[1-9][0-9]{0,4}", "[0-9]{1,5}")
    ),
    _endpoint("endpoint-prefix", "anything before it", "_DESCRIPTION.match(", "_DESCRIPTION.search("),
    _endpoint("endpoint-port", "a port that is none", " or int(match[1]) > MAX_PORT:", ":"),
    _endpoint("bound-everywhere", "the whole network reaches it", "interface=LOOPBACK)", 'interface="0.0.0.0")'),
    _endpoint("bound-elsewhere-unnoticed", "a reactor that binds elsewhere is trusted", _BOUND, "if False:"),
    _endpoint("bound-host-unchecked", "the address is not looked at", _BOUND, "if family != socket.AF_INET:"),
    _endpoint(
        "bound-family-unchecked", "the family is not looked at", _BOUND, 'if getattr(host, "host", None) != LOOPBACK:'
    ),
    _endpoint(
        "bound-elsewhere-left-open",
        "it says so, and goes on listening",
        "            await maybeDeferred(port.stopListening)\n",
        "",
    ),
    _dial(
        "dialled-by-name",
        "a resolver says where the server is",
        "TCP4ClientEndpoint(self.reactor, LOOPBACK,",
        'TCP4ClientEndpoint(self.reactor, "localhost",',
    ),
    _dial(
        "dialled-any-port",
        "a port that is none",
        "if isinstance(where, int) and not 1 <= where <= MAX_PORT:",
        "if False:",
    ),
    _dial(
        "dialled-unproved",
        "messages go to who has not proved itself",
        "return await protocol.when_authenticated()",
        "return protocol",
    ),
    _dial(
        "dialled-takes-a-kind",
        "who has no handler takes messages",
        "return checked if kinds else msgspec.structs.replace(checked, allowed_kinds=())",
        "return checked",
    ),
    # Settings
    _config("bind-host-equal", "what claims to be equal is taken", _HOST, "        if value == LOOPBACK:\n"),
    _config(
        "bind-host-blanks", "blanks around it", _HOST, "        if type(value) is str and value.strip() == LOOPBACK:\n"
    ),
    _config(
        "bind-host-network",
        "any address of 127.0.0.0/8",
        _HOST,
        '        if type(value) is str and value.startswith("127."):\n',
    ),
    _config(
        "bind-host-normalized",
        "digits of another script",
        _HOST,
        '        if type(value) is str and __import__("unicodedata").normalize("NFKC", value) == LOOPBACK:\n',
    ),
    _config("bind-host-unchecked", "any address", _HOST, "        if True:\n"),
    _config(
        "bind-host-uncategorized",
        "nobody learns that it is forbidden",
        'f"{Category.BIND_FORBIDDEN}: must be',
        'f"must be',
    ),
    _config(
        "no-kdf", "the secret itself is the key", 'kdf: Literal["hkdf_sha256"]', 'kdf: Literal["hkdf_sha256", "none"]'
    ),
    _config("any-mode", "a mode without signatures", 'mode: Literal["hmac"] =', "mode: str ="),
    _config("any-transport", "another transport", 'transport: Literal["tcp_local"]', "transport: str"),
    _config(
        "ttl-unbounded",
        "a time to live without end",
        "ttl_seconds: Annotated[int, Meta(ge=1, le=86_400)]",
        "ttl_seconds: int",
    ),
    _config("service-newline", "a service with a line break", r"{1,64}\Z", "{1,64}$"),
    _config("no-kinds", "an empty list of kinds", "frozenset) and value:", "frozenset):"),
    _config(
        "unknown-keys",
        "a limit whose name is misspelt is not set",
        "        if name not in fields:\n",
        "        if False:\n",
    ),
    _config(
        "seconds-infinite",
        "a deadline that never comes",
        "return not isinstance(value, float) or math.isfinite(value)",
        "return True",
    ),
    _config(
        "frame-does-not-fit",
        "a largest frame can never be sent",
        "        if limit < at_least:\n",
        "        if False:\n",
    ),
    _config(
        "unused-key-file",
        "a key file is named and another key used",
        'good.get("auth.secret_mode") == "generated":',
        "False:",
    ),
]
