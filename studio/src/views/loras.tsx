// The library of LoRA files: put in, looked at, taken out.

import { useState } from 'preact/hooks';
import { api } from '../api';
import { change, draft } from '../draft';
import { bytes, moment, number, plural, t } from '../i18n';
import { FilePicker } from '../parts/loraPicker';
import { FileDrop, UploadRows, upload, uploads } from '../parts/uploads';
import { Button, Confirm, Empty, Loading } from '../parts/ui';
import { go } from '../route';
import { loras, tellProblem } from '../store';
import type { Lora } from '../types';

export function LorasView() {
  const all = loras.value;
  const takeFiles = async (files: File[]) => {
    for (const file of files) await upload(file);
  };
  return (
    <FileDrop class="page loras" onFiles={(files) => void takeFiles(files)}>
      <header class="page-head">
        <h1>{t('nav.loras')}</h1>
        <FilePicker onFiles={(files) => void takeFiles(files)} />
      </header>
      <UploadRows rows={uploads.value} />
      {all === null ? (
        <Loading />
      ) : all.length === 0 ? (
        <Empty icon="loras" title={t('lora.empty')}>
          <p>{t('lora.emptyText')}</p>
        </Empty>
      ) : (
        <ul class="cards">
          {all.map((lora) => (
            <LoraCard key={lora.id} lora={lora} />
          ))}
        </ul>
      )}
    </FileDrop>
  );
}

function LoraCard({ lora }: { lora: Lora }) {
  const [isAsked, setAsked] = useState(false);
  const use = () => {
    if (!draft.value.loras.some((one) => one.id === lora.id))
      change({ loras: [...draft.value.loras, { id: lora.id, scale: 1 }] });
    go('create');
  };
  const remove = async () => {
    try {
      await api.deleteLora(lora.id);
      loras.value = (loras.value ?? []).filter((one) => one.id !== lora.id);
    } catch (error) {
      tellProblem(error);
    }
  };
  const facts: [string, string][] = [
    [t('lora.format'), `${lora.format} · ${lora.algorithm}`],
    [t('lora.rankName'), number(lora.rank)],
    [t('lora.modules'), number(lora.modules)],
    [t('lora.textEncoder'), t(lora.text_encoder ? 'word.yes' : 'word.no')],
    [t('lora.size'), bytes(lora.size_bytes)],
    [t('lora.base'), lora.base_model],
  ];
  return (
    <li class="card">
      <header class="row between">
        <h2>{lora.name}</h2>
        <Button icon="trash" kind="quiet" iconOnly onClick={() => setAsked(true)}>
          {t('lora.delete', { name: lora.name })}
        </Button>
      </header>
      {lora.description && <p>{lora.description}</p>}
      <dl class="facts">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {lora.trigger_words.length > 0 && (
        <p class="words">
          <span class="label">{t('form.triggers')}</span>
          {lora.trigger_words.slice(0, 12).map((word) => (
            <code key={word}>{word}</code>
          ))}
        </p>
      )}
      {lora.tags.length > 0 && <p class="muted small">{lora.tags.join(' · ')}</p>}
      {lora.strays.length > 0 && (
        <p class="muted small">{plural('lora.unmatched', lora.strays.length)}</p>
      )}
      <footer class="row between">
        <span class="muted small">{moment(lora.created_at)}</span>
        <Button onClick={use}>{t('lora.use')}</Button>
      </footer>
      {isAsked && (
        <Confirm
          title={t('lora.deleteTitle', { name: lora.name })}
          text={t('lora.deleteText')}
          action={t('action.delete')}
          onConfirm={() => void remove()}
          onClose={() => setAsked(false)}
        />
      )}
    </li>
  );
}
