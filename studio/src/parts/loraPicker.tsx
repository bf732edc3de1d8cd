// The LoRAs of a request: chosen from the library or dropped in, each with its scale.

import { useState } from 'preact/hooks';
import { change, draft, refused, usedLoras, whole } from '../draft';
import { number, t } from '../i18n';
import { loras, model } from '../store';
import { FileDrop, UploadRows, upload, uploads } from './uploads';
import { Button, Dialog, Empty, Slider } from './ui';

export function LoraPicker({ error }: { error?: string | null }) {
  const [isOpen, setOpen] = useState(false);
  const bounds = model.value?.lora_scale;
  const most = model.value?.limits.max_loras ?? 8;
  const used = usedLoras.value;
  const choose = (id: string) => {
    if (!draft.value.loras.some((one) => one.id === id))
      change({ loras: [...draft.value.loras, { id, scale: 1 }] });
  };
  const takeFiles = async (files: File[]) => {
    for (const file of files) {
      const lora = await upload(file);
      if (lora) choose(lora.id);
    }
  };
  return (
    <FileDrop class="lora-picker" onFiles={takeFiles}>
      <fieldset>
        <legend>
          {t('nav.loras')}{' '}
          <span class="muted num">
            {used.length}/{most}
          </span>
        </legend>
        {used.map(({ lora, scale, isAvatars }) => {
          const place = draft.value.loras.findIndex((one) => one.id === lora.id);
          const problem = place < 0 ? null : refused.value[`loras[${place}].scale`];
          return (
            <div class="lora-use" key={lora.id}>
              {isAvatars ? (
                <p class="row between">
                  <span>{lora.name}</span>
                  <span class="muted small">
                    {t('form.fromAvatar')} · <span class="num">{number(scale, 2, 2)}</span>
                  </span>
                </p>
              ) : (
                <>
                  <Slider
                    label={lora.name}
                    value={scale}
                    min={bounds?.minimum ?? -2}
                    max={bounds?.maximum ?? 2}
                    step={0.05}
                    error={problem}
                    onChange={(value) =>
                      change({
                        loras: draft.value.loras.map((one) =>
                          one.id === lora.id ? { ...one, scale: value } : one,
                        ),
                      })
                    }
                  />
                  <Button
                    icon="close"
                    kind="quiet"
                    iconOnly
                    onClick={() =>
                      change({ loras: draft.value.loras.filter((one) => one.id !== lora.id) })
                    }
                  >
                    {t('form.removeLora', { name: lora.name })}
                  </Button>
                </>
              )}
            </div>
          );
        })}
        {used.length < most && (
          <Button icon="plus" kind="quiet" onClick={() => setOpen(true)}>
            {t('form.addLora')}
          </Button>
        )}
        {error && <p class="field-error">{error}</p>}
        <UploadRows rows={uploads.value.filter((row) => row.state !== 'done')} />
      </fieldset>
      {isOpen && <LibraryDialog onChoose={choose} onFiles={takeFiles} onClose={() => setOpen(false)} />}
    </FileDrop>
  );
}

function LibraryDialog(props: {
  onChoose: (id: string) => void;
  onFiles: (files: File[]) => void;
  onClose: () => void;
}) {
  const [sought, setSought] = useState('');
  const all = loras.value ?? [];
  const found = all.filter((lora) =>
    [lora.name, ...lora.tags, ...lora.trigger_words]
      .join(' ')
      .toLowerCase()
      .includes(sought.trim().toLowerCase()),
  );
  const chosen = new Set(usedLoras.value.map(({ lora }) => lora.id));
  return (
    <Dialog title={t('form.addLora')} onClose={props.onClose}>
      {all.length > 6 && (
        <input
          type="search"
          placeholder={t('form.searchLora')}
          aria-label={t('form.searchLora')}
          value={sought}
          onInput={(e) => setSought(e.currentTarget.value)}
        />
      )}
      <ul class="choices">
        {found.map((lora) => (
          <li key={lora.id}>
            <button
              type="button"
              disabled={chosen.has(lora.id)}
              onClick={() => {
                props.onChoose(lora.id);
                props.onClose();
              }}
            >
              <strong>{lora.name}</strong>
              <span class="muted small">
                {[...lora.trigger_words.slice(0, 4), ...lora.tags.slice(0, 4)].join(' · ') ||
                  `${lora.format} · ${t('lora.rank', { rank: lora.rank })}`}
              </span>
            </button>
          </li>
        ))}
      </ul>
      {all.length === 0 && <Empty icon="loras" title={t('lora.empty')} />}
      <FilePicker onFiles={props.onFiles} />
    </Dialog>
  );
}

/** A button that opens the computer's file dialog. */
export function FilePicker({ onFiles }: { onFiles: (files: File[]) => void }) {
  return (
    <label class="file-picker">
      <input
        type="file"
        accept=".safetensors"
        multiple
        onChange={(e) => {
          onFiles([...(e.currentTarget.files ?? [])]);
          e.currentTarget.value = '';
        }}
      />
      {t('lora.choose')}
    </label>
  );
}

/** Words that wake the chosen LoRAs, to be put into the prompt with one click. */
export function TriggerWords() {
  const prompt = whole.value?.prompt ?? '';
  const words = [...new Set(usedLoras.value.flatMap(({ lora }) => lora.trigger_words))];
  if (!words.length) return null;
  const has = (word: string) => prompt.toLowerCase().includes(word.toLowerCase());
  return (
    <div class="chips" role="group" aria-label={t('form.triggers')}>
      {words.slice(0, 16).map((word) => (
        <button
          type="button"
          key={word}
          class="chip"
          aria-pressed={has(word)}
          onClick={() => change({ prompt: has(word) ? taken(prompt, word) : added(prompt, word) })}
        >
          {word}
        </button>
      ))}
    </div>
  );
}

const added = (prompt: string, word: string): string =>
  prompt.trim() ? `${prompt.trim().replace(/,$/, '')}, ${word}` : word;

function taken(prompt: string, word: string): string {
  const at = prompt.toLowerCase().indexOf(word.toLowerCase());
  const left = prompt.slice(0, at).replace(/,?\s*$/, '');
  const right = prompt.slice(at + word.length).replace(/^\s*,?\s*/, '');
  return left && right ? `${left}, ${right}` : left + right;
}
