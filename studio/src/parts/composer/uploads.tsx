// LoRA files on their way into the library, whichever view they were dropped on.

import { signal } from '@preact/signals';
import { asProblem, uploadLora } from '../../server/api';
import { change, draft } from '../../drafting/draft';
import { explain } from '../../server/explain';
import { bytes, percent, t } from '../../i18n';
import { route } from '../../state/route';
import { keepLora, model } from '../../state/store';
import type { Lora } from '../../server/types';
import { Bar, Button } from '../ui';

interface Upload {
  number: number;
  file: File;
  /** The view on which it was dropped. */
  from: string;
  part: number;
  state: 'sending' | 'reading' | 'done' | 'refused';
  text: string;
  /** The line failed, not the file: it may be sent again. */
  canRetry: boolean;
}

export const uploads = signal<Upload[]>([]);
let count = 0;

function note(number: number, changes: Partial<Upload>): void {
  uploads.value = uploads.value.map((row) => (row.number === number ? { ...row, ...changes } : row));
}

const dismiss = (gone: (row: Upload) => boolean): void => {
  uploads.value = uploads.value.filter((row) => !gone(row));
};

/** Put `files` into the library, one after the other; from the form, they are used as well. */
export async function takeFiles(files: File[]): Promise<void> {
  const from = route.value.view;
  for (const file of files) await upload(file, from);
}

async function upload(file: File, from: string): Promise<void> {
  const number = ++count;
  const row: Upload = { number, file, from, part: 0, state: 'sending', text: '', canRetry: false };
  uploads.value = [...uploads.value, row];
  await send(row);
}

async function send(row: Upload): Promise<void> {
  const { number, file, from } = row;
  note(number, { state: 'sending', part: 0, text: '', canRetry: false });
  const most = model.value?.limits.lora_max_bytes ?? Infinity;
  const early = !file.name.toLowerCase().endsWith('.safetensors')
    ? t('upload.wrongType')
    : file.size > most
      ? t('upload.tooLarge', { max: bytes(most) })
      : null;
  if (early) return note(number, { state: 'refused', text: early });
  try {
    const name = file.name.replace(/\.safetensors$/i, '').replace(/[_]+/g, ' ');
    const { lora, isNew } = await uploadLora(file, name, (part) =>
      note(number, { part, state: part < 1 ? 'sending' : 'reading' }),
    );
    keepLora(lora);
    note(number, { state: 'done', text: isNew ? t('upload.added') : t('upload.known') });
    if (from === 'create') use(lora);
  } catch (error) {
    const problem = asProblem(error);
    const canRetry = problem.status === 0 || problem.status >= 500;
    note(number, { state: 'refused', text: explain(problem), canRetry });
  }
}

function use(lora: Lora): void {
  if (!draft.value.loras.some((one) => one.id === lora.id))
    change({ loras: [...draft.value.loras, { id: lora.id, scale: lora.default_scale }] });
}

export function UploadRows({ rows }: { rows: Upload[] }) {
  const ended = rows.filter((row) => row.state === 'done' || row.state === 'refused');
  if (!rows.length) return null;
  return (
    <div class="stack" aria-live="polite">
      <ul class="uploads">
        {rows.map((row) => (
          <li key={row.number} class={row.state}>
            <div class="row between">
              <strong>{row.file.name}</strong>
              <span class="muted small num">{bytes(row.file.size)}</span>
              {row.canRetry && (
                <Button icon="again" kind="quiet" onClick={() => void send(row)}>
                  {t('action.retry')}
                </Button>
              )}
              {ended.includes(row) && (
                <Button
                  icon="close"
                  kind="quiet"
                  iconOnly
                  onClick={() => dismiss((one) => one.number === row.number)}
                >
                  {t('action.dismiss')}
                </Button>
              )}
            </div>
            {row.state === 'sending' && (
              <Bar part={row.part} label={`${t('upload.sending')} ${percent(row.part)}`} />
            )}
            {row.state === 'reading' && <Bar part={null} label={t('upload.reading')} />}
            {row.text && <p class={row.state === 'refused' ? 'field-error' : 'small'}>{row.text}</p>}
          </li>
        ))}
      </ul>
      {ended.length > 1 && (
        <Button kind="quiet" onClick={() => dismiss((row) => ended.some((one) => one.number === row.number))}>
          {t('upload.dismissAll')}
        </Button>
      )}
    </div>
  );
}
