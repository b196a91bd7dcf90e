// Saves a conversation that the server keeps as a file on this machine.

/** `ask`: (path) -> Response. Whether there was something to save. */
export async function save(ask, id, form) {
  const answer = id && (await ask(`v1/conversations/${id}.${form}`).catch(() => null));
  if (!answer?.ok) return false;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `hearken-${id}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  return true;
}
