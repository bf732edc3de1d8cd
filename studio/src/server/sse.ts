// Reads server-sent events from a fetch body: unlike EventSource it can resume where it chooses.

export interface ServerEvent {
  id: string | null;
  type: string;
  data: string;
}

/** The events of `body` in order, until it ends. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const reader = body.pipeThrough(new TextDecoderStream() as never).getReader() as
    ReadableStreamDefaultReader<string>;
  let pending = '';
  let event: ServerEvent = { id: null, type: 'message', data: '' };
  let hasData = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (pending + value).split(/\r\n|\n|\r(?!$)/);
      pending = lines.pop() ?? '';
      for (const line of lines) {
        if (line === '') {
          if (hasData) yield event;
          event = { id: null, type: 'message', data: '' };
          hasData = false;
          continue;
        }
        const [, name, text] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
        if (name === 'data') {
          event.data += (hasData ? '\n' : '') + text;
          hasData = true;
        } else if (name === 'event') event.type = text ?? 'message';
        else if (name === 'id') event.id = text ?? null;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
