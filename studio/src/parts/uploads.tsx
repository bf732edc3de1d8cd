// LoRA files on their way into the library, whichever view they were dropped on.

import { signal } from '@preact/signals';
import type { ComponentChildren } from 'preact';
import { useRef, useState } from 'preact/hooks';
import { asProblem, uploadLora } from '../api';
import { bytes, percent, t } from '../i18n';
import { explain, loras, model } from '../store';
import type { Lora } from '../types';
import { Bar, Button } from './ui';

interface Upload {
  number: number;
  name: string;
  size: number;
  part: number;
  state: 'sending' | 'reading' | 'done' | 'refused';
  text: string;
}

export const uploads = signal<Upload[]>([]);
let count = 0;

function note(number: number, changes: Partial<Upload>): void {
  uploads.value = uploads.value.map((row) => (row.number === number ? { ...row, ...changes } : row));
}

/** Put `file` into the library; null where it was refused, which its row explains. */
export async function upload(file: File): Promise<Lora | null> {
  const number = ++count;
  const row: Upload = { number, name: file.name, size: file.size, part: 0, state: 'sending', text: '' };
  uploads.value = [...uploads.value, row];
  const most = model.value?.limits.lora_max_bytes ?? Infinity;
  const early = !file.name.toLowerCase().endsWith('.safetensors')
    ? t('upload.wrongType')
    : file.size > most
      ? t('upload.tooLarge', { max: bytes(most) })
      : null;
  if (early) {
    note(number, { state: 'refused', text: early });
    return null;
  }
  try {
    const name = file.name.replace(/\.safetensors$/i, '').replace(/[_]+/g, ' ');
    const { lora, isNew } = await uploadLora(file, name, (part) =>
      note(number, { part, state: part < 1 ? 'sending' : 'reading' }),
    );
    loras.value = [lora, ...(loras.value ?? []).filter((one) => one.id !== lora.id)];
    note(number, { state: 'done', text: isNew ? t('upload.added') : t('upload.known') });
    return lora;
  } catch (error) {
    note(number, { state: 'refused', text: explain(asProblem(error)) });
    return null;
  }
}

export function UploadRows({ rows }: { rows: Upload[] }) {
  if (!rows.length) return null;
  return (
    <ul class="uploads" aria-live="polite">
      {rows.map((row) => (
        <li key={row.number} class={row.state}>
          <div class="row between">
            <strong>{row.name}</strong>
            <span class="muted small num">{bytes(row.size)}</span>
            {row.state !== 'sending' && row.state !== 'reading' && (
              <Button
                icon="close"
                kind="quiet"
                iconOnly
                onClick={() => {
                  uploads.value = uploads.value.filter((one) => one !== row);
                }}
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
  );
}

interface DropProps {
  class?: string;
  onFiles: (files: File[]) => void;
  children: ComponentChildren;
}

/** A place to drop files on. Only files light it up: text dragged over it does not. */
export function FileDrop({ class: names = '', onFiles, children }: DropProps) {
  const [isOver, setOver] = useState(false);
  const depth = useRef(0);
  const hasFiles = (e: DragEvent) => e.dataTransfer?.types.includes('Files') ?? false;
  return (
    <div
      class={`drop ${names} ${isOver ? 'over' : ''}`}
      onDragEnter={(e) => {
        if (!hasFiles(e)) return;
        e.preventDefault();
        depth.current++;
        setOver(true);
      }}
      onDragOver={(e) => hasFiles(e) && e.preventDefault()}
      onDragLeave={() => {
        depth.current = Math.max(0, depth.current - 1);
        if (depth.current === 0) setOver(false);
      }}
      onDrop={(e) => {
        if (!hasFiles(e)) return;
        e.preventDefault();
        depth.current = 0;
        setOver(false);
        onFiles([...(e.dataTransfer?.files ?? [])]);
      }}
    >
      {children}
      {isOver && (
        <p class="drop-note" aria-hidden="true">
          {t('lora.drop')}
        </p>
      )}
    </div>
  );
}
