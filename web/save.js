// Saves what the server keeps as a file on this machine.

/** `ask`: (path) -> Response. Whether there was something to save. */
export async function download(ask, path, name) {
  const answer = await ask(path).catch(() => null);
  if (!answer?.ok) return false;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  return true;
}

/** A conversation, as `txt`, `json`, `vtt` or `srt`. */
export async function save(ask, id, form) {
  return Boolean(id) && download(ask, `v1/conversations/${id}.${form}`, `hearken-${id}.${form}`);
}
