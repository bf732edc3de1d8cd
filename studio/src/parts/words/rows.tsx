// A list of what the owner keeps by name: opened, put into the prompt, removed.

import { useState } from 'preact/hooks';
import { t } from '../../i18n';
import { tellProblem } from '../../state/store';
import { Button, Confirm } from '../ui';

interface Props<T> {
  all: T[];
  textOf?: (one: T) => string;
  /** Without it there is nothing in it to be seen or changed. */
  onChoose?: (one: T) => void;
  onInsert?: (one: T) => void;
  removeText: string;
  onRemove: (one: T) => Promise<unknown>;
  /** After a removal, also one that was refused: the list may be an old one. */
  onChanged: () => Promise<void>;
}

export function Rows<T extends { name: string }>(props: Props<T>) {
  const { all, textOf, onChoose, onInsert, removeText, onRemove, onChanged } = props;
  const [asked, setAsked] = useState<T | null>(null);
  const remove = async (one: T) => {
    await onRemove(one).catch(tellProblem);
    await onChanged();
  };
  return (
    <>
      <ul class="choices">
        {all.map((one) => (
          <li key={one.name} class="words-row">
            {onChoose ? (
              <button type="button" onClick={() => onChoose(one)}>
                <span class="choice-words">
                  <strong>{one.name}</strong>
                  {textOf && <span class="muted small clamp">{textOf(one)}</span>}
                </span>
              </button>
            ) : (
              <strong>{one.name}</strong>
            )}
            {onInsert && (
              <Button icon="plus" kind="quiet" iconOnly onClick={() => onInsert(one)}>
                {t('words.insert', { name: one.name })}
              </Button>
            )}
            <Button icon="trash" kind="quiet" iconOnly onClick={() => setAsked(one)}>
              {t('preset.remove', { name: one.name })}
            </Button>
          </li>
        ))}
      </ul>
      {asked && (
        <Confirm
          title={t('words.removeTitle', { name: asked.name })}
          text={removeText}
          action={t('action.delete')}
          onConfirm={() => void remove(asked)}
          onClose={() => setAsked(null)}
        />
      )}
    </>
  );
}
