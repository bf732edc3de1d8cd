// Embeddings (textual inversions): words that a file taught.

import { useEffect, useState } from 'preact/hooks';
import { change, draft, type FieldErrors } from '../../drafting/draft';
import { t } from '../../i18n';
import { api, asProblem, uploadEmbedding } from '../../server/api';
import { explain } from '../../server/explain';
import type { Embedding } from '../../server/types';
import { tellProblem } from '../../state/store';
import { Button, Field, Loading } from '../ui';
import { Rows } from './rows';

/** Have `name` mean its embedding: read as A1111 reads them, words do so by themselves. */
function use(name: string): void {
  const { syntax, beyond } = draft.value;
  const used = beyond.embeddings ?? [];
  if (syntax === 'a1111' || used.some((one) => (one.word ?? one.name) === name)) return;
  change({ beyond: { ...beyond, embeddings: [...used, { name }] } });
}

/** A form that still asked for what is gone would be refused. */
function forget(name: string): void {
  const { embeddings, ...beyond } = draft.value.beyond;
  const left = embeddings?.filter((one) => one.name !== name) ?? [];
  change({ beyond: left.length ? { ...beyond, embeddings: left } : beyond });
}

export function Embeddings({ onInsert }: { onInsert: (word: string) => void }) {
  const [all, setAll] = useState<Embedding[] | null>(null);
  const read = () => api.embeddings().then((found) => setAll(found.items), tellProblem);
  useEffect(() => void read(), []);
  const remove = async (one: Embedding) => {
    await api.deleteEmbedding(one.id);
    forget(one.name);
  };
  if (!all) return <Loading />;
  return (
    <>
      <p class="field-hint">{t('words.embeddingsText')}</p>
      <Rows
        all={all}
        onInsert={({ name }) => {
          use(name);
          onInsert(name);
        }}
        removeText={t('lora.deleteText')}
        onRemove={remove}
        onChanged={read}
      />
      <Upload onDone={read} />
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
