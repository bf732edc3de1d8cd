// The owner's own words: styles around a prompt, wildcards in it, embeddings that a file taught.

import { useEffect, useState } from 'preact/hooks';
import { change, draft } from '../../drafting/draft';
import { insertInPrompt } from '../../drafting/editText';
import { t } from '../../i18n';
import { api } from '../../server/api';
import type { Style, Wildcard } from '../../server/types';
import { refreshWords, styles, wildcards, wordsChanged } from '../../state/words';
import { Button, Dialog, Loading } from '../ui';
import { Embeddings } from './embeddings';
import { StyleForm, WildcardForm } from './forms';
import { Rows } from './rows';

type Kind = 'styles' | 'wildcards' | 'embeddings';

export function WordsManager({ onClose }: { onClose: () => void }) {
  const [kind, setKind] = useState<Kind>('styles');
  const [isDirty, setDirty] = useState(false);
  useEffect(() => void refreshWords(), []);
  // Only once the dialog is gone is there a field to write in.
  const insert = (word: string) => {
    onClose();
    requestAnimationFrame(() => insertInPrompt(word));
  };
  const names: Record<Kind, string> = {
    styles: t('field.styles'),
    wildcards: t('words.wildcards'),
    embeddings: t('field.embeddings'),
  };
  return (
    <Dialog title={t('words.title')} onClose={onClose} isDirty={isDirty}>
      <div class="chips" role="group" aria-label={t('words.title')}>
        {(Object.keys(names) as Kind[]).map((one) => (
          <button
            type="button"
            class="chip"
            key={one}
            aria-pressed={one === kind}
            disabled={isDirty && one !== kind}
            onClick={() => setKind(one)}
          >
            {names[one]}
          </button>
        ))}
      </div>
      {kind === 'styles' && <Styles onDirty={setDirty} />}
      {kind === 'wildcards' && <Wildcards onDirty={setDirty} onInsert={insert} />}
      {kind === 'embeddings' && <Embeddings onInsert={insert} />}
    </Dialog>
  );
}

/** Which one the form below the list holds. */
type Edited<T> = T | 'new' | null;

function Styles({ onDirty }: { onDirty: (isDirty: boolean) => void }) {
  const [edited, setEdited] = useState<Edited<Style>>(null);
  const all = styles.value;
  if (!all) return <Loading />;
  const end = () => {
    setEdited(null);
    onDirty(false);
  };
  if (edited)
    return (
      <StyleForm
        style={edited === 'new' ? null : edited}
        others={all.filter((one) => one !== edited).map((one) => one.name)}
        onDirty={() => onDirty(true)}
        onEnd={end}
      />
    );
  const remove = async ({ name }: Style) => {
    await api.deleteStyle(name);
    change({ styles: draft.value.styles.filter((one) => one !== name) });
  };
  return (
    <>
      <p class="field-hint">{t('words.stylesText', { place: '{prompt}' })}</p>
      <Rows
        all={all}
        textOf={(one) => [one.prompt, one.negative_prompt].filter(Boolean).join(' · ')}
        onChoose={setEdited}
        removeText={t('words.removeText')}
        onRemove={remove}
        onChanged={wordsChanged}
      />
      <footer class="row end">
        <Button icon="plus" onClick={() => setEdited('new')}>
          {t('words.newStyle')}
        </Button>
      </footer>
    </>
  );
}

interface WildcardsProps {
  onDirty: (isDirty: boolean) => void;
  onInsert: (word: string) => void;
}

function Wildcards({ onDirty, onInsert }: WildcardsProps) {
  const [edited, setEdited] = useState<Edited<Wildcard>>(null);
  const all = wildcards.value;
  if (!all) return <Loading />;
  const end = () => {
    setEdited(null);
    onDirty(false);
  };
  if (edited)
    return (
      <WildcardForm
        wildcard={edited === 'new' ? null : edited}
        others={all.filter((one) => one !== edited).map((one) => one.name)}
        onDirty={() => onDirty(true)}
        onEnd={end}
      />
    );
  return (
    <>
      <p class="field-hint">{t('words.wildcardsText')}</p>
      <Rows
        all={all}
        textOf={(one) => one.lines.join(' · ')}
        onChoose={setEdited}
        onInsert={(one) => onInsert(`__${one.name}__`)}
        removeText={t('words.removeText')}
        onRemove={(one) => api.deleteWildcard(one.name)}
        onChanged={wordsChanged}
      />
      <footer class="row end">
        <Button icon="plus" onClick={() => setEdited('new')}>
          {t('words.newWildcard')}
        </Button>
      </footer>
    </>
  );
}
