// One axis of the next grid: its parameter, and its values as they are best given.

import { useState } from 'preact/hooks';
import {
  isSame,
  kindOf,
  labelOf,
  readBack,
  samplersOf,
  sizesOf,
  useOf,
  valuesOf,
  type Name,
  type Parameter,
  type Value,
  type Written,
} from '../../drafting/axes';
import { usedLoras, type Whole } from '../../drafting/draft';
import { number, plural, t } from '../../i18n';
import { loras as library } from '../../state/store';
import type { Model } from '../../server/types';
import { isSought, LoraSearch } from '../composer/loraPicker';
import { LoraCover } from '../pictures/cover';
import { Field } from '../ui';

interface Props {
  name: Name;
  written: Written;
  offered: Parameter[];
  of: Whole;
  model: Model;
  problem: string | null;
  onTurn: (parameter: Parameter) => void;
  onChange: (changes: Partial<Written>) => void;
}

export function AxisField({ name, written, offered, of, model, problem, onTurn, onChange }: Props) {
  const { parameter, text } = written;
  const kind = kindOf(parameter);
  const values = valuesOf(written);
  const hint = hintOf(parameter, values);
  const write = (e: { currentTarget: HTMLInputElement | HTMLTextAreaElement }) =>
    onChange({ text: e.currentTarget.value, touched: true });
  return (
    <fieldset class="axis">
      <legend class="unseen">{t(`grid.${name}`)}</legend>
      <Field label={t(`grid.${name}`)}>
        {(attributes) => (
          <select
            {...attributes}
            value={parameter}
            onChange={(e) => onTurn(e.currentTarget.value as Parameter)}
          >
            {offered.map((one) => (
              <option key={one} value={one}>
                {labelOf({ parameter: one })}
              </option>
            ))}
          </select>
        )}
      </Field>
      {kind === 'choice' ? (
        <Choice written={written} of={of} model={model} problem={problem} hint={hint} onChange={onChange} />
      ) : (
        <Field label={t('grid.values')} error={problem} hint={hint}>
          {(attributes) =>
            kind === 'prompts' ? (
              <textarea {...attributes} rows={6} value={text} onInput={write} />
            ) : (
              <input {...attributes} type="text" inputMode="text" value={text} onInput={write} />
            )
          }
        </Field>
      )}
    </fieldset>
  );
}

/** What was read, and how to write it. */
function hintOf(parameter: Parameter, values: Value[]): string {
  const count = plural('grid.read', values.length);
  switch (kindOf(parameter)) {
    case 'prompts':
      return `${count}. ${t('batch.promptsHint')}.`;
    case 'words':
      return `${values.length ? `${count}: ${readBack({ parameter, values })}. ` : ''}${t('grid.wordsHint')}`;
    case 'choice':
      // Its own list says which LoRAs and samplers.
      return parameter === 'size' ? `${count}: ${readBack({ parameter, values })}` : count;
    default:
      return `${count}: ${readBack({ parameter, values })}. ${t('grid.valuesHint')}`;
  }
}

interface ChoiceProps {
  written: Written;
  of: Whole;
  model: Model;
  problem: string | null;
  hint: string;
  onChange: (changes: Partial<Written>) => void;
}

/** Values that are chosen, in the order in which they are. */
function Choice({ written, of, model, problem, hint, onChange }: ChoiceProps) {
  const { parameter, chosen } = written;
  const has = (value: Value) => chosen.some((one) => isSame(one, value));
  const toggle = (value: Value) =>
    onChange({
      chosen: has(value) ? chosen.filter((one) => !isSame(one, value)) : [...chosen, value],
      touched: true,
    });
  return (
    <fieldset class="field axis-choice">
      <legend>{t('grid.values')}</legend>
      {parameter === 'size' && <Sizes of={of} model={model} has={has} toggle={toggle} />}
      {parameter === 'scheduler' && (
        <div class="chips">
          {samplersOf(model).map((one) => (
            <button type="button" key={one} class="chip" aria-pressed={has(one)} onClick={() => toggle(one)}>
              {one}
            </button>
          ))}
        </div>
      )}
      {parameter === 'which_lora' && <WhichLoras of={of} chosen={chosen} has={has} toggle={toggle} />}
      <p class={problem ? 'field-error' : 'field-hint'} role={problem ? 'alert' : undefined}>
        {problem ?? hint}
      </p>
    </fieldset>
  );
}

interface ListProps {
  of: Whole;
  has: (value: Value) => boolean;
  toggle: (value: Value) => void;
}

function Sizes({ of, model, has, toggle }: ListProps & { model: Model }) {
  return (
    <div class="shapes">
      {sizesOf(of, model).map(({ name, width, height }) => {
        const scale = 18 / Math.max(width, height);
        const value = `${width}x${height}`;
        return (
          <button
            type="button"
            key={name}
            class="shape"
            aria-pressed={has(value)}
            title={`${width} × ${height}`}
            onClick={() => toggle(value)}
          >
            <i aria-hidden="true" style={{ width: `${width * scale}px`, height: `${height * scale}px` }} />
            {name}
          </button>
        );
      })}
    </div>
  );
}

function WhichLoras({ of, chosen, has, toggle }: ListProps & { chosen: Value[] }) {
  const [sought, setSought] = useState('');
  // The avatar's own is in every picture.
  const own = usedLoras.value.find((one) => one.isAvatars)?.lora.id;
  const all = (library.value ?? []).filter((lora) => lora.id !== own);
  const found = all.filter((lora) => isSought(lora, sought));
  // At the scale that it was chosen at: the form's may have changed since.
  const valueOf = (id: string) =>
    chosen.find((one) => (one as { lora_model_id?: string } | null)?.lora_model_id === id);
  return (
    <>
      <LoraSearch among={all.length} sought={sought} onSought={setSought} />
      <ul class="picks">
        {!sought && (
          <li>
            <label>
              <input type="checkbox" checked={has(null)} onChange={() => toggle(null)} />
              <span class="choice-words">{t('grid.none')}</span>
            </label>
          </li>
        )}
        {found.map((lora) => {
          const value = valueOf(lora.id) ?? useOf(lora, of);
          const scale = (value as { scale?: number }).scale ?? 1;
          return (
            <li key={lora.id}>
              <label>
                <input type="checkbox" checked={has(value)} onChange={() => toggle(value)} />
                <LoraCover lora={lora} />
                <span class="choice-words">{lora.name}</span>
                <span class="muted small num">{number(scale, 2, 2)}</span>
              </label>
            </li>
          );
        })}
      </ul>
      {found.length === 0 && (
        <p class="muted" role="status">
          {t('lora.noHit', { sought })}
        </p>
      )}
    </>
  );
}
