// Embeddings (textual inversions): words that a file taught.

import { useEffect, useState } from 'preact/hooks';
import { change, draft, type FieldErrors } from '../../drafting/draft';
import { t } from '../../i18n';
import { api, asProblem, uploadEmbedding } from '../../server/api';
import { explain } from '../../server/explain';
import type { Embedding } from '../../server/types';
import { tellProblem } from '../../state/store';
import { Button, Confirm, Field, Loading } from '../ui';

/** Have `name` mean its embedding: read as A1111 reads them, words do so by themselves. */
function use(name: string): void {
  const { syntax, beyond } = draft.value;
  const used = beyond.embeddings ?? [];
  if (syntax === 'a1111' || used.some((one) => (one.word ?? one.name) === name)) return;
  change({ beyond: { ...beyond, embeddings: [...used, { name }] } });
}

export function Embeddings({ onInsert }: { onInsert: (word: string) => void }) {
  const [all, setAll] = useState<Embedding[] | null>(null);
  const [asked, setAsked] = useState<Embedding | null>(null);
  const read = () => api.embeddings().then((found) => setAll(found.items), tellProblem);
  useEffect(() => void read(), []);
  const remove = async (one: Embedding) => {
    await api.deleteEmbedding(one.id).catch(tellProblem);
    await read();
  };
  if (!all) return <Loading />;
  return (
    <>
      <p class="field-hint">{t('words.embeddingsText')}</p>
      <ul class="choices">
        {all.map((one) => (
          <li key={one.id} class="words-row">
            <strong>{one.name}</strong>
            <Button
              icon="plus"
              kind="quiet"
              iconOnly
              onClick={() => {
                use(one.name);
                onInsert(one.name);
              }}
            >
              {t('words.insert', { name: one.name })}
            </Button>
            <Button icon="trash" kind="quiet" iconOnly onClick={() => setAsked(one)}>
              {t('preset.remove', { name: one.name })}
            </Button>
          </li>
        ))}
      </ul>
      <Upload onDone={read} />
      {asked && (
        <Confirm
          title={t('words.removeTitle', { name: asked.name })}
          text={t('lora.deleteText')}
          action={t('action.delete')}
          onConfirm={() => void remove(asked)}
          onClose={() => setAsked(null)}
        />
      )}
    </>
  );
}

function Upload({ onDone }: { onDone: () => Promise<void> }) {
  const [file, setFile] = useState<File | null>(null);
  const [word, setWord] = useState('');
  const [errors, setErrors] = useState<FieldErrors>({});
  const [isBusy, setBusy] = useState(false);
  const send = async () => {
    if (!file) return;
    setBusy(true);
    try {
      await uploadEmbedding(file, word.trim(), file.name);
      setFile(null);
      setWord('');
      setErrors({});
      await onDone();
    } catch (error) {
      const problem = asProblem(error);
      setErrors({ [problem.field === 'name' ? 'name' : 'file']: explain(problem) });
    } finally {
      setBusy(false);
    }
  };
  return (
    <form
      class="stack"
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        void send();
      }}
    >
      <Field label={t('field.file')} error={errors.file}>
        {(attributes) => (
          <input
            {...attributes}
            // A new one once this file was sent.
            key={String(file === null)}
            type="file"
            accept=".safetensors"
            onChange={(e) => {
              const chosen = e.currentTarget.files?.[0] ?? null;
              setErrors({});
              setFile(chosen);
              if (chosen && !word) setWord(chosen.name.match(/\w+/)?.[0] ?? '');
            }}
          />
        )}
      </Field>
      <Field label={t('field.word')} error={errors.name}>
        {(attributes) => (
          <input
            {...attributes}
            type="text"
            autocapitalize="off"
            maxLength={64}
            value={word}
            onInput={(e) => {
              setErrors({});
              setWord(e.currentTarget.value);
            }}
          />
        )}
      </Field>
      <footer class="row end">
        <Button type="submit" icon="upload" disabled={!file || !word.trim() || isBusy}>
          {t('words.upload')}
        </Button>
      </footer>
    </form>
  );
}
